#pragma once

namespace golden {

inline Vendor flexprice_pricing() { return {"flexprice", {}}; }

}  // namespace golden
