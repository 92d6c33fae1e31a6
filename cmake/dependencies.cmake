# Each library is looked for on the system and, when it is not there, fetched at one pinned version with its hash.
# Fetching needs the network; without it, install what is named here (Debian's package in brackets):
#   SQLiteCpp (libsqlitecpp-dev), nlohmann/json (nlohmann-json3-dev), Catch2 (catch2),
#   Howard Hinnant's date (libhowardhinnant-date-dev), libcurl (libcurl4-openssl-dev; never fetched)
include(FetchContent)
if(POLICY CMP0135)
    cmake_policy(SET CMP0135 NEW)  # extracted files get the time of extraction
endif()

find_package(CURL 7.61 QUIET)

# Headers that are not ours do not get our warnings.
function(meter_quiet_headers target)
    get_target_property(directories ${target} INTERFACE_INCLUDE_DIRECTORIES)
    set_target_properties(${target} PROPERTIES INTERFACE_SYSTEM_INCLUDE_DIRECTORIES "${directories}")
endfunction()

macro(meter_need_json)
    find_package(nlohmann_json 3.11 QUIET)
    if(NOT nlohmann_json_FOUND)
        message(STATUS "nlohmann/json not found, fetching 3.11.3")
        set(JSON_Install ${METER_INSTALL} CACHE INTERNAL "")
        set(JSON_BuildTests OFF CACHE INTERNAL "")
        FetchContent_Declare(nlohmann_json
            URL https://github.com/nlohmann/json/releases/download/v3.11.3/json.tar.xz
            URL_HASH SHA256=d6c65aca6b1ed68e7a182f4757257b107ae403032760ed6ef121c9d55e81757d)
        FetchContent_MakeAvailable(nlohmann_json)
        meter_quiet_headers(nlohmann_json)
    endif()
endmacro()

macro(meter_need_sqlitecpp)
    find_package(SQLiteCpp 3.2 QUIET)
    if(NOT SQLiteCpp_FOUND)
        message(STATUS "SQLiteCpp not found, fetching 3.2.1")
        find_package(SQLite3 3.37 QUIET)
        set(meter_bundled_sqlite ON)
        if(SQLite3_FOUND)
            set(meter_bundled_sqlite OFF)
        endif()
        set(SQLITECPP_INTERNAL_SQLITE ${meter_bundled_sqlite} CACHE BOOL "Use the SQLite that comes with SQLiteCpp")
        foreach(off SQLITECPP_RUN_CPPLINT SQLITECPP_RUN_CPPCHECK SQLITECPP_INCLUDE_SCRIPT SQLITE_ENABLE_COLUMN_METADATA)
            set(${off} OFF CACHE INTERNAL "")
        endforeach()
        FetchContent_Declare(SQLiteCpp
            URL https://github.com/SRombauts/SQLiteCpp/archive/3.2.1.tar.gz
            URL_HASH SHA256=70c67d5680c47460f82a7abf8e6b0329bf2fb10795a982a6d8abc06adb42d693)
        FetchContent_MakeAvailable(SQLiteCpp)
        meter_quiet_headers(SQLiteCpp)
    endif()
endmacro()

# Whether std::chrono comes with time zones (libstdc++ 14, MSVC 19.29; not libc++ 14).
function(meter_has_tzdb result)
    set(CMAKE_CXX_STANDARD 20)
    set(CMAKE_REQUIRED_QUIET ON)
    check_cxx_source_compiles("#include <chrono>\nint main() { return std::chrono::locate_zone(\"UTC\") == nullptr; }" ${result})
endfunction()

macro(meter_need_date)
    find_package(date 3 QUIET)
    if(NOT date_FOUND)
        message(STATUS "Howard Hinnant's date not found, fetching 3.0.1")
        set(BUILD_TZ_LIB ON CACHE INTERNAL "")
        set(USE_SYSTEM_TZ_DB ON CACHE INTERNAL "")
        FetchContent_Declare(date
            URL https://github.com/HowardHinnant/date/archive/refs/tags/v3.0.1.tar.gz
            URL_HASH SHA256=7a390f200f0ccd207e8cff6757e04817c1a0aec3e327b006b7eb451c57ee3538)
        FetchContent_MakeAvailable(date)
        meter_quiet_headers(date)
        meter_quiet_headers(date-tz)
    endif()
endmacro()

# Catch2 version 2 or 3. METER_CATCH is what a test program links.
macro(meter_need_catch)
    find_package(Catch2 QUIET)
    if(NOT Catch2_FOUND)
        message(STATUS "Catch2 not found, fetching 3.7.1")
        FetchContent_Declare(Catch2
            URL https://github.com/catchorg/Catch2/archive/refs/tags/v3.7.1.tar.gz
            URL_HASH SHA256=c991b247a1a0d7bb9c39aa35faf0fe9e19764213f28ffba3109388e62ee0269c)
        FetchContent_MakeAvailable(Catch2)
        meter_quiet_headers(Catch2)
    endif()
    if(TARGET Catch2::Catch2WithMain)
        set(METER_CATCH Catch2::Catch2WithMain)
    else()
        set(METER_CATCH Catch2::Catch2)
    endif()
endmacro()
