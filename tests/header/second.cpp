#include "meter.hpp"

std::string describe(const meter::Event& event);
std::string describe(const meter::Event& event) { return event.name + " " + event.customer; }
