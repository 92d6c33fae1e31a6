// What every fuzzer here offers, to libFuzzer and to the plain driver beside it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size);

namespace meter_fuzz {

/// Inputs to begin with: for the plain driver to change, and for libFuzzer as a first corpus.
std::vector<std::string> seeds();

inline std::string_view text_of(const std::uint8_t* data, std::size_t size) { return {reinterpret_cast<const char*>(data), size}; }

/// What must hold, also in a build without assertions.
inline void require(bool holds, const char* what) {
    if (!holds) throw std::logic_error(what);
}

}  // namespace meter_fuzz
