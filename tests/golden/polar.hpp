// Polar's vectors: dossier section 14.
#pragma once

namespace golden::polar_vectors {

namespace polar = meter::polar;
using meter::Node;

json metered_unit(const json& vector) {
    const auto price = polar::read_metered(Node(vector.at("price")));
    const double consumed = std::stod(vector.at("consumed_units").get<std::string>());
    const auto priced = polar::price_units(price, consumed, integer(vector, "credited_units"));
    return {{"amount", text(priced.amount)}, {"label", polar::label(price, consumed, priced)}};
}

json round_half_away(const json& vector) { return {{"rounded", text(polar::rounded_half_away(number(vector, "value")))}}; }

json tiers(const json& vector) {
    meter::Problems problems;
    const auto tiers = polar::read_tiers(Node(vector.at("tiers")), problems);
    try {
        return {{"amount", text(polar::price_tiers(tiers, number(vector, "quantity")).amount)}};
    } catch (const meter::Error& error) {
        return {{"error", error.reason()}, {"status", 400}};
    }
}

json tiers_validation(const json& vector) {
    meter::Problems problems;
    polar::read_tiers(Node(vector.at("tiers")), problems);
    return {{"error_type", problems.empty() ? json(nullptr) : json(problems.front().code)}};
}

json metered_price_validation(const json& vector) {
    try {
        polar::read_metered(Node(vector.at("price")));
        return {{"accepted", true}};
    } catch (const meter::Error&) {
        return {{"accepted", false}};
    }
}

/// The billed line of some entries, or nothing when there are none.
void add_item(const std::string& name, const std::vector<json>& entries, polar::Function function, const json& vector, json& items) {
    if (entries.empty()) return;
    std::vector<double> values;
    std::vector<std::int64_t> credits;
    for (const auto& entry : entries) {
        const auto kind = entry.at("kind").get<std::string>();
        if (kind == "usage")
            values.push_back(entry.at("value").is_string() ? std::stod(entry.at("value").get<std::string>()) : entry.at("value").get<double>());
        if (kind == "credit") credits.push_back(entry.at("value").get<std::int64_t>());
    }
    const auto consumed = polar::aggregated(function, values);
    const auto priced = polar::price_units(polar::read_metered(Node(vector.at("prices").at(name))), consumed, polar::credited_units(credits));
    items.push_back(
        {{"price", name}, {"amount", text(priced.amount)}, {"consumed_units", consumed}, {"credited_units", polar::credited_units(credits)}});
}

json billing_run(const json& vector) {
    const auto function = Node(vector.at("meter").at("aggregation")).choice("func", polar::functions);
    std::map<std::string, std::vector<json>> by_price;
    std::vector<json> all;
    for (const auto& entry : vector.at("entries")) {
        if (entry.value("after_cutoff", false) || entry.value("deleted", false) || entry.value("billed", false)) continue;
        by_price[entry.at("price")].push_back(entry);
        all.push_back(entry);
    }
    auto items = json::array();
    for (const auto& name : vector.at("active_prices")) {
        add_item(name, polar::is_summable(function) ? by_price[name] : all, function, vector, items);
    }
    return {{"items", items}};
}

}  // namespace golden::polar_vectors

namespace golden {

inline Vendor polar_pricing() {
    using namespace polar_vectors;
    return {"polar",
            {{"metered_unit", metered_unit},
             {"round_half_away", round_half_away},
             {"tiers", tiers},
             {"tiers_validation", tiers_validation},
             {"metered_price_validation", metered_price_validation},
             {"billing_run", billing_run}}};
}

}  // namespace golden
