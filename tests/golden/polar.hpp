#pragma once

namespace golden {

inline Vendor polar_pricing() { return {"polar", {}}; }

}  // namespace golden
