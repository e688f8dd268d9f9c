"""Checks that every dependency's licence is one that this project may be shipped with. Exits 1 and names the others."""

import json
import re
import subprocess
import sys

ALLOWED = {
    "MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0",
    "IJG", "ISC", "MIT-0", "Unicode-3.0", "Unlicense", "Zlib", "0BSD",
}


def is_allowed(expression):
    """An SPDX expression; `/` is the old way to write OR. All terms of an AND, or one of an OR, must be allowed."""
    expression = expression.replace("/", " OR ").strip()
    while expression.startswith("(") and expression.endswith(")") and "(" not in expression[1:-1]:
        expression = expression[1:-1].strip()
    for operator, combine in ((" AND ", all), (" OR ", any)):
        parts = split_outside_parentheses(expression, operator)
        if len(parts) > 1:
            return combine(is_allowed(part) for part in parts)
    return expression in ALLOWED


def split_outside_parentheses(expression, operator):
    parts, depth, start, i = [], 0, 0, 0
    while i < len(expression):
        depth += {"(": 1, ")": -1}.get(expression[i], 0)
        if depth == 0 and expression.startswith(operator, i):
            parts.append(expression[start:i].strip())
            start = i = i + len(operator)
            continue
        i += 1
    return parts + [expression[start:].strip()]


def main():
    metadata = json.loads(subprocess.check_output(["cargo", "metadata", "--format-version", "1", "--locked"]))
    packages = [p for p in metadata["packages"] if p["source"]]
    bad = [p for p in packages if not is_allowed(re.sub(r"\s+", " ", p.get("license") or "none stated"))]
    for package in bad:
        print(f"licences: {package['name']} {package['version']}: {package.get('license')}", file=sys.stderr)
    print(f"licences: {len(packages) - len(bad)} of {len(packages)} packages are allowed")
    sys.exit(1 if bad or not packages else 0)


if __name__ == "__main__":
    main()
