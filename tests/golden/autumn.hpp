// Autumn's vectors: dossier section 8.
#pragma once

namespace golden::autumn_vectors {

namespace autumn = meter::autumn;
using meter::Node;

/// A text member; empty when it is missing or null.
std::string text_at(const json& object, const char* key) {
    const auto found = object.find(key);
    return found == object.end() || found->is_null() ? "" : found->get<std::string>();
}

bool flag_at(const json& object, const char* key, bool fallback = false) {
    const auto found = object.find(key);
    return found == object.end() || found->is_null() ? fallback : found->get<bool>();
}

/// A number that there need not be.
std::optional<Decimal> number_at(const json& object, const char* key) {
    const auto found = object.find(key);
    return found == object.end() || found->is_null() ? std::nullopt : std::optional(Decimal::from_json(*found));
}

/// The member of a vector; an empty object when it is missing.
json part_of(const json& vector, const char* key) { return vector.value(key, json::object()); }

autumn::Item item_of(const json& vector) {
    const auto properties = part_of(vector, "properties");
    return autumn::read_item(Node(properties), number(properties, "included"), flag_at(properties, "tier_to_includes_included"),
                             text_at(part_of(vector, "input"), "currency"));
}

/// Refusals are the vendor's own words.
template <class Answer>
json or_error(Answer&& answer) {
    try {
        return answer();
    } catch (const meter::Error& error) {
        return {{"error", error.reason()}};
    }
}

json tiers(const json& vector) {
    const auto input = part_of(vector, "input");
    return or_error([&]() -> json {
        const auto priced =
            autumn::price_quantity(item_of(vector), number(input, "allowance"), number(input, "overage"), flag_at(input, "allow_negative", true));
        return {{"amount", text(priced.amount)}};
    });
}

json fixed(const json& vector) {
    const auto properties = part_of(vector, "properties"), input = part_of(vector, "input");
    const auto amounts = autumn::in_currency(Node(properties), text_at(input, "currency"));
    return {{"amount", text(number(amounts.value(), "amount", number(properties, "amount")) * number(input, "multiplier", 1))}};
}

json minor_units(const json& vector) {
    return {{"minor_units",
             text(autumn::minor_units(number(vector.at("input"), "amount"), autumn::currency_of(vector.at("properties").at("currency"))))}};
}

json plan_item_prepaid(const json& vector) {
    const auto item = item_of(vector);
    const auto quantity = number(vector.at("input"), "quantity");
    const auto amount = autumn::price_prepaid(item, quantity).amount;
    return {{"item_amount", text(amount)},
            {"invoice_total", text(amount + number(vector.at("properties"), "fixed_base_price"))},
            {"balance", text(autumn::starting_balance(item, autumn::prepaid_packs(item, quantity), 1))}};
}

json plan_item_prepaid_update(const json& vector) {
    const auto item = item_of(vector);
    const auto& input = vector.at("input");
    const auto change =
        autumn::price_prepaid(item, number(input, "new_quantity")).amount - autumn::price_prepaid(item, number(input, "old_quantity")).amount;
    return {{"delta", text(change * (Decimal(1) - number(input, "cycle_elapsed_fraction")))}};
}

json plan_item_usage_based(const json& vector) {
    const auto& input = vector.at("input");
    const auto usages = input.contains("usage_by_entity") ? numbers(input, "usage_by_entity") : std::vector<Decimal>{number(input, "usage")};
    const auto amount = autumn::price_overage(item_of(vector), usages).amount;
    return {{"overage_amount", text(amount)}, {"invoice_total", text(amount + number(vector.at("properties"), "fixed_base_price"))}};
}

json starting_balance(const json& vector) {
    const auto& input = vector.at("input");
    return {{"starting_balance", text(autumn::starting_balance(item_of(vector), number(input, "packs"), number(input, "product_quantity", 1)))}};
}

json prepaid_display_quantity(const json& vector) {
    auto item = item_of(vector);
    item.prepaid = true;
    return {{"quantity", text(autumn::starting_balance(item, number(vector.at("input"), "packs"), 1))}};
}

json tier_boundary(const json& vector) {
    const auto included = number(vector.at("properties"), "included");
    const bool to_user = vector.at("input").at("direction") == "internal_to_user";
    auto limits = json::array();
    for (const auto& limit : vector.at("input").at("to")) {
        if (limit == "inf") {
            limits.push_back(limit);
            continue;
        }
        const auto value = Decimal::from_json(limit);
        limits.push_back(text(to_user ? autumn::user_limit(value, included) : autumn::internal_limit(value, included)));
    }
    return {{"to", limits}};
}

json credit_cost(const json& vector) {
    const auto properties = part_of(vector, "properties"), input = part_of(vector, "input");
    const auto system = autumn::read_credit_system(Node(properties), "credit_feature_id");
    return or_error([&]() -> json { return {{"credits", text(autumn::credits(system, text_at(input, "feature_id"), number(input, "amount", 1)))}}; });
}

/// A request to a model, of a book whose only plan grants the credit system. Both may be spelt as Autumn's API does or shorter.
json token_cost(const json& vector) {
    auto system = part_of(vector, "properties"), request = part_of(vector, "input");
    const auto rename = [](json& object, const char* from, const char* to) {
        if (object.contains(from) && !object.contains(to)) object[to] = object[from];
    };
    request.update(part_of(request, "tokens"));
    for (const auto* name : {"model", "model_name", "modelName"}) rename(request, name, "model_id");
    for (const auto* kind : {"input", "output", "cache_read", "cache_write", "audio_input", "audio_output", "reasoning"})
        rename(request, kind, (std::string(kind) + "_tokens").c_str());
    for (const auto* name : {"credit_feature_id", "feature_id"}) rename(system, name, "id");
    for (const auto* name : {"markup", "markup_percent"}) rename(system, name, "default_markup");
    for (const auto* name : {"cost", "pricing"}) rename(system, name, "rates");
    if (!request.contains("model_id")) request["model_id"] = system.contains("input_cost") ? "custom/model" : "provider/model";
    request.erase("feature_id");
    system["id"] = text_at(system, "id").empty() ? "ai_credits" : text_at(system, "id");
    system["type"] = "ai_credit_system";
    // Rates beside the system are those of the one model there is.
    const auto model = text_at(request, "model_id");
    auto models = part_of(system, "models");
    if (system.contains("input_cost"))
        system["model_markups"][model] = {{"input_cost", system["input_cost"]}, {"output_cost", system["output_cost"]}};
    if (system.contains("rates")) models[model.substr(0, model.find('/'))]["models"][model.substr(model.find('/') + 1)]["cost"] = system["rates"];
    return or_error([&]() -> json {
        const auto book = meter::Book::autumn(
            {{"plan", {{"id", "plan"}, {"items", {{{"feature_id", system["id"]}}}}}}, {"features", {system}}, {"models", models}});
        const auto fee = book.price_tokens(request);
        json answer;
        for (const auto* name : {"cost", "credits", "usd", "amount", "value"}) answer[name] = text(fee.amount);
        return answer;
    });
}

autumn::OverageBehavior behavior_of(const std::string& name) {
    if (name == "reject") return autumn::OverageBehavior::reject;
    return name == "overflow" || name == "allow" ? autumn::OverageBehavior::overflow : autumn::OverageBehavior::cap;
}

json deduction(const json& vector) {
    const auto properties = part_of(vector, "properties"), input = part_of(vector, "input");
    std::vector<autumn::Balance> balances;
    for (const auto& source : properties.at("balances")) {
        autumn::Balance balance{number(source, "balance"), number(source, "starting_balance") + number(source, "adjustment")};
        balance.overage_allowed = flag_at(source, "usage_allowed");
        balance.unlimited = flag_at(source, "unlimited");
        balance.least = number_at(source, "min_balance");
        balance.cost = number(source, "credit_cost", 1);
        if (balance.cost.is_zero()) balance.cost = 1;
        balances.push_back(std::move(balance));
    }
    const auto behavior = behavior_of(text_at(properties.contains("overage_behavior") ? properties : input, "overage_behavior"));
    const auto left = autumn::settle(balances, number(input, "value", 1), behavior);
    json out{{"balances", json::object()}, {"remaining", text(left)}};
    if (behavior == autumn::OverageBehavior::reject && !left.is_zero()) out["error"] = "insufficient_balance";
    for (std::size_t i = 0; i < balances.size(); ++i) out["balances"][text_at(properties.at("balances")[i], "id")] = text(balances[i].balance);
    return out;
}

json check(const json& vector) {
    const auto properties = part_of(vector, "properties");
    const auto required = number(part_of(vector, "input"), "required_balance", 1);
    meter::Check standing{.required = required, .balance = number(properties, "remaining"), .overage = number(properties, "overage")};
    standing.unlimited = flag_at(properties, "unlimited");
    standing.overage_allowed = flag_at(properties, "overage_allowed");
    standing.overage_limit = number_at(properties, properties.contains("overage_limit") ? "overage_limit" : "max_purchase");
    standing.usage_limit_left = number_at(properties, "headroom");
    return {{"allowed", autumn::allowed(standing)}, {"required_balance", text(required)}};
}

}  // namespace golden::autumn_vectors

namespace golden {

inline Vendor autumn_pricing() {
    using namespace autumn_vectors;
    return {"autumn",
            {{"graduated", tiers},
             {"volume", tiers},
             {"fixed", fixed},
             {"minor_units", minor_units},
             {"plan_item_prepaid", plan_item_prepaid},
             {"plan_item_prepaid_update", plan_item_prepaid_update},
             {"plan_item_usage_based", plan_item_usage_based},
             {"starting_balance", starting_balance},
             {"prepaid_display_quantity", prepaid_display_quantity},
             {"tier_boundary", tier_boundary},
             {"credit_cost", credit_cost},
             {"token_cost", token_cost},
             {"deduction", deduction},
             {"check", check}}};
}

}  // namespace golden
