// Version 3 of Catch2 brings main() in a library; version 2 makes it here.
#define CATCH_CONFIG_MAIN
#include "testing.hpp"
