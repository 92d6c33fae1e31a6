// What a vendor's adapter gives the runner: for each kind of vector a function from the vector to what the library makes of it.
// The answer needs the members that `expected` has; more do no harm. Include after meter.cpp.
#pragma once

#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include <nlohmann/json.hpp>

namespace golden {

using meter::Decimal;
using meter::json;

/// Thrown by an adapter for a vector of a form it does not read; such a vector is skipped.
struct Unknown {};

struct Kind {
    std::string_view name;
    json (*run)(const json& vector);
};

/// The kinds of one vendor's file.
struct Vendor {
    std::string_view system;
    std::vector<Kind> kinds;
};

inline Decimal number(const json& object, const char* key, Decimal fallback = {}) {
    const auto found = object.find(key);
    return found == object.end() || found->is_null() ? fallback : Decimal::from_json(*found);
}

inline std::vector<Decimal> numbers(const json& object, const char* key) {
    std::vector<Decimal> list;
    if (object.contains(key)) {
        for (const auto& each : object.at(key)) list.push_back(Decimal::from_json(each));
    }
    return list;
}

inline std::int64_t integer(const json& object, const char* key, std::int64_t fallback = 0) {
    return number(object, key, fallback).to_int64().value();
}

inline std::string text(const Decimal& value) { return value.to_string(); }

}  // namespace golden
