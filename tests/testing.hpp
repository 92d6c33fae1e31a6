// Catch2, whichever major version is installed.
#ifndef METER_TESTING_HPP
#define METER_TESTING_HPP

#if __has_include(<catch2/catch_all.hpp>)
#include <catch2/catch_all.hpp>
#else
#include <catch2/catch.hpp>
#endif

#endif
