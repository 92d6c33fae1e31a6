#pragma once

namespace golden {

inline Vendor autumn_pricing() { return {"autumn", {}}; }

}  // namespace golden
