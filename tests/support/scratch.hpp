// What tests of the store lean on: a directory that goes away, plain SQLite beside the library, errors as values, seeds.
#pragma once

#include <sqlite3.h>

#include <cstdint>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <memory>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "../../meter.hpp"

namespace meter_test {

/// A fresh directory, removed with all that is in it.
class Scratch {
public:
    Scratch() {
        static int counter = 0;
        const auto root = std::filesystem::temp_directory_path();
        do {
            directory_ = root / ("meter-test-" + std::to_string(std::random_device{}()) + "-" + std::to_string(++counter));
        } while (!std::filesystem::create_directory(directory_));
    }
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() {
        std::error_code ignored;
        std::filesystem::remove_all(directory_, ignored);
    }
    std::string path(const std::string& name = "usage.db") const { return (directory_ / name).string(); }

private:
    std::filesystem::path directory_;
};

/// A database as any program sees it through SQLite alone. Opening it afresh each time leaves no lock behind.
class PlainDatabase {
public:
    explicit PlainDatabase(const std::string& path) {
        sqlite3* made = nullptr;
        const int code = sqlite3_open_v2(path.c_str(), &made, SQLITE_OPEN_READWRITE, nullptr);
        db_.reset(made);
        check(code);
        check(sqlite3_busy_timeout(made, 10000));
    }
    using Row = std::vector<std::optional<std::string>>;
    /// Every row that the statements answer, as text; nothing for NULL.
    std::vector<Row> rows(const std::string& sql) const {
        std::vector<Row> found;
        for (const char* rest = sql.c_str(); *rest != '\0';) {
            sqlite3_stmt* made = nullptr;
            check(sqlite3_prepare_v2(db_.get(), rest, -1, &made, &rest));
            const std::unique_ptr<sqlite3_stmt, Finalize> statement(made);
            int code = SQLITE_DONE;
            while (made != nullptr && (code = sqlite3_step(made)) == SQLITE_ROW) found.push_back(row(made));
            check(code == SQLITE_DONE ? SQLITE_OK : code);
        }
        return found;
    }
    std::string text(const std::string& sql) const { return rows(sql).at(0).at(0).value_or("NULL"); }
    std::int64_t integer(const std::string& sql) const { return std::stoll(text(sql)); }
    void run(const std::string& sql) const { rows(sql); }

private:
    struct Close {
        void operator()(sqlite3* db) const noexcept { sqlite3_close(db); }
    };
    struct Finalize {
        void operator()(sqlite3_stmt* statement) const noexcept { sqlite3_finalize(statement); }
    };
    void check(int code) const {
        if (code != SQLITE_OK) throw std::runtime_error(std::string("SQLite: ") + sqlite3_errmsg(db_.get()));
    }
    static Row row(sqlite3_stmt* statement) {
        Row values;
        for (int i = 0; i < sqlite3_column_count(statement); ++i) {
            const bool null = sqlite3_column_type(statement, i) == SQLITE_NULL;
            const auto* bytes = static_cast<const char*>(sqlite3_column_blob(statement, i));
            const auto size = static_cast<std::size_t>(sqlite3_column_bytes(statement, i));
            values.push_back(null ? std::nullopt : std::optional<std::string>(std::in_place, bytes == nullptr ? "" : bytes, size));
        }
        return values;
    }
    std::unique_ptr<sqlite3, Close> db_;
};

inline std::string read_file(const std::string& path) {
    std::ifstream in(path, std::ios::binary);
    return {std::istreambuf_iterator<char>(in), {}};
}

inline void write_file(const std::string& path, const std::string& bytes) { std::ofstream(path, std::ios::binary | std::ios::trunc) << bytes; }

/// The Error that `f` throws.
template <class F>
meter::Error error_of(F&& f) {
    try {
        f();
    } catch (const meter::Error& error) {
        return error;
    }
    throw std::logic_error("no Error was thrown");
}

/// The same on every run, unless METER_TEST_SEED says otherwise. Print it with what fails.
inline std::uint64_t test_seed() {
    const char* given = std::getenv("METER_TEST_SEED");
    return given != nullptr ? std::strtoull(given, nullptr, 10) : 20261121;
}

}  // namespace meter_test
