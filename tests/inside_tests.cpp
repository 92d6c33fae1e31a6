// All tests of internals as one unit, so that meter.cpp is compiled once for them. Each of these files also compiles by itself.
#include "books_test.cpp"
#include "expressions_test.cpp"
#include "fees_test.cpp"
#include "fleet_test.cpp"
#include "time_test.cpp"
#include "wire_test.cpp"
