// meter.cpp with its internals in sight, for tests of them: the first include of such a file.
#pragma once

#include "../meter.cpp"
#include "testing.hpp"

namespace {

meter::Period period(const char* from, const char* to) { return {meter::Timestamp::parse(from), meter::Timestamp::parse(to)}; }

}  // namespace
