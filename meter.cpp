// meter: see meter.hpp for what it does. This file is one room with twelve corners, in order of dependency; a section uses only those
// above it. Pure in the middle (1-3, 7-9: no database, clock, socket or thread), effects at the edge. SQL stands only in 4-6 and 10,
// a vendor's name only in 8 and 9.
// SPDX-License-Identifier: MIT
//
//    1 decimal    exact numbers                       7 fees        from units to amounts
//    2 time       timestamps, periods, bins           8 books       how each vendor measures and prices
//    3 values     JSON text, paths, filters           9 wire        requests, answers and rules of each vendor
//    4 store      SQLite: schema, log, segments      10 delivery    cursors, batches, waiting, parking
//    5 reading    find, list, names                  11 transport   libcurl (optional)
//    6 measuring  scan, aggregate                    12 Meter       the facade: locks, threads, wiring

#include "meter.hpp"

#include <SQLiteCpp/SQLiteCpp.h>
#include <sqlite3.h>

#include <algorithm>
#include <array>
#include <bit>
#include <charconv>
#include <cmath>
#include <condition_variable>
#include <cstring>
#include <limits>
#include <map>
#include <mutex>
#include <random>
#include <thread>
#include <unordered_map>
#include <unordered_set>

#ifdef METER_CURL
#include <curl/curl.h>
#endif

namespace meter {

Error::Error(ErrorCode code, std::string field, std::string reason)
    : std::runtime_error(field.empty() ? reason : field + ": " + reason), code_(code), field_(std::move(field)), reason_(std::move(reason)) {}

// =============================================================================================
// 1 decimal: exact numbers. A sign, a 128-bit coefficient in two words, a scale. Uses nothing.
// =============================================================================================

// =============================================================================================
// 2 time: timestamps, periods, bins. Pure; the only clock is Timestamp::now(). Uses 1.
// =============================================================================================

// =============================================================================================
// 3 values: JSON text (scanner, writer, canonical form), property paths, filters. Pure. Uses 1, 2.
// =============================================================================================

// =============================================================================================
// 4 store: the SQLite file: schema, connections, transactions, the event log. Uses 1-3.
// =============================================================================================

// =============================================================================================
// 5 reading: find, list, names. Uses 1-4.
// =============================================================================================

// =============================================================================================
// 6 measuring: the scan, and aggregates over it. Uses 1-5.
// =============================================================================================

// =============================================================================================
// 7 fees: tiers, packages, percentages, rounding to a currency. Pure. Uses 1-3.
// =============================================================================================

// =============================================================================================
// 8 books: how each vendor measures and prices, from its own JSON. Pure. Uses 1-3, 7.
// =============================================================================================

// =============================================================================================
// 9 wire: each vendor's requests, answers and rules, as tables. Pure. Uses 1-3.
// =============================================================================================

// =============================================================================================
// 10 delivery: cursors, batches, waiting, parking. Uses 1-5, 9.
// =============================================================================================

// =============================================================================================
// 11 transport: one HTTP exchange through libcurl, when built with METER_CURL. Uses nothing.
// =============================================================================================

// =============================================================================================
// 12 Meter: the facade: locks, threads, wiring. Uses all of them.
// =============================================================================================

}  // namespace meter
