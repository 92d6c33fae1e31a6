// Small catalogues as the vendors write them, for tests that need a price.
#pragma once

#include <string>

#include "../../meter.hpp"

namespace meter_test {

/// Lago: one standard charge on the sum of `tokens` of events named "tokens". `more` goes over the plan's members.
inline meter::json lago_plan(const std::string& code, const std::string& amount, meter::json more = meter::json::object()) {
    meter::json plan{{"code", code},
                     {"amount_currency", "EUR"},
                     {"interval", "monthly"},
                     {"charges", {{{"billable_metric_code", "tokens"}, {"charge_model", "standard"}, {"properties", {{"amount", amount}}}}}}};
    plan.update(more);
    return {{"plan", plan}, {"billable_metrics", {{{"code", "tokens"}, {"aggregation_type", "sum_agg"}, {"field_name", "tokens"}}}}};
}

/// FlexPrice: a flat fee on the sum of `tokens` of events named "tokens", per customer.
inline meter::json flexprice_prices(const std::string& amount, const std::string& currency = "EUR") {
    return {{"prices",
             {{{"id", "p1"}, {"type", "USAGE"}, {"meter_id", "m1"}, {"billing_model", "FLAT_FEE"}, {"currency", currency}, {"amount", amount}}}},
            {"meters", {{{"id", "m1"}, {"event_name", "tokens"}, {"aggregation", {{"type", "SUM"}, {"field", "tokens"}}}}}}};
}

}  // namespace meter_test
