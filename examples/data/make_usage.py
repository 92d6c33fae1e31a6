#!/usr/bin/env python3
"""Writes usage.jsonl: January 2026 of a small company that sells an API. Always the same 3,000 events.

    python3 make_usage.py > usage.jsonl
"""
import datetime
import json
import random
import sys
import uuid

EVENTS = 3000
START = datetime.datetime(2026, 1, 1, tzinfo=datetime.timezone.utc)
PARIS = datetime.timezone(datetime.timedelta(hours=1))

# customer, subscription, weight
ACCOUNTS = [
    ("acme", "sub_acme_prod", 40),
    ("acme", "sub_acme_test", 12),
    ("lumiere", "sub_lumiere", 24),
    ("o-neill", "sub_o_neill", 14),
    ("tokyo-denki", "sub_tokyo", 10),
]
NAMES = [("api_call", 70), ("storage", 12), ("export", 10), ("sms", 8)]
MODELS = [("small", 60), ("medium", 28), ("large", 12)]
REGIONS = ["eu-west", "us-east", "ap-north"]
TITLES = ["Quarterly report", "L'été à Paris", "O'Neill & Sons: invoices", "Übersicht für März", "月次レポート", "Прайс-лист", "50 % \"off\" list"]
COUNTRIES = ["FR", "DE", "IE", "JP", "US"]

rng = random.Random(20260101)


def pick(weighted):
    return rng.choices([w[:-1] for w in weighted], [w[-1] for w in weighted])[0]


def moment():
    """Busier on weekdays and by day."""
    while True:
        t = START + datetime.timedelta(microseconds=rng.randrange(31 * 86400 * 10**6))
        busy = (1.0 if t.weekday() < 5 else 0.35) * (1.0 if 7 <= t.hour < 19 else 0.3)
        if rng.random() < busy:
            return t


def uuid7(t):
    """Time-ordered, as meter makes them itself when an event has no id."""
    bits = (int(t.timestamp() * 1000) << 80) | (7 << 76) | (rng.getrandbits(12) << 64) | (2 << 62) | rng.getrandbits(62)
    return str(uuid.UUID(int=bits))


def text(t):
    """Clocks differ: whole seconds, milliseconds, a local offset."""
    form = rng.choices(["seconds", "milliseconds", "paris"], [6, 3, 1])[0]
    if form == "seconds":
        return t.strftime("%Y-%m-%dT%H:%M:%SZ")
    if form == "milliseconds":
        return t.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return t.astimezone(PARIS).isoformat(timespec="seconds")


def properties(name):
    if name == "api_call":
        tokens = int(rng.lognormvariate(6, 1))
        return {"tokens": tokens, "model": pick(MODELS)[0], "region": rng.choice(REGIONS), "status": rng.choices([200, 429, 500], [96, 3, 1])[0]}
    if name == "storage":
        return {"gb_hours": f"{rng.uniform(0.5, 90):.3f}", "region": rng.choice(REGIONS)}
    if name == "export":
        return {"title": rng.choice(TITLES), "pages": rng.randint(1, 40), "format": rng.choice(["pdf", "csv"])}
    return {"parts": rng.randint(1, 3), "country": rng.choice(COUNTRIES)}


def main():
    moments = sorted(moment() for _ in range(EVENTS))
    lines = []
    for t in moments:
        customer, subscription = pick(ACCOUNTS)
        name = pick(NAMES)[0]
        lines.append({"id": uuid7(t), "name": name, "customer": customer, "subscription": subscription, "timestamp": text(t), "properties": properties(name)})
    for _ in range(EVENTS // 50):  # some arrive late
        lines.insert(rng.randrange(len(lines)), lines.pop(rng.randrange(len(lines))))
    for line in lines:
        sys.stdout.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")) + "\n")


main()
