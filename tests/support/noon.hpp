// A Meter for tests of questions: it is noon, and every 64 events are sealed.
#pragma once

#include "../../meter.hpp"

namespace meter_test {

inline const meter::Timestamp noon = meter::Timestamp::from_civil(2026, 3, 1, 12);

inline meter::MeterOptions options_for(const std::string& path = ":memory:", std::int64_t chunk = 64) {
    meter::MeterOptions options;
    options.path = path;
    options.durability = meter::Durability::process;
    options.chunk_events = chunk;
    options.clock = [] { return noon; };
    return options;
}

}  // namespace meter_test
