// meter.hpp is the first thing this unit sees, so it must include what it needs; second.cpp includes it too.
#include "meter.hpp"

std::string describe(const meter::Event& event);

int main() { return describe({.name = "api_call", .customer = "acme"}) == "api_call acme" ? 0 : 1; }
