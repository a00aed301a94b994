#!/usr/bin/env bash
# What a newcomer does: clone, `make demo`. Fails unless the page and the run are there.
set -euo pipefail
here=$(git -C "$(dirname "$0")" rev-parse --show-toplevel)
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
git clone --quiet "$here" "$fresh/headwater"
cd "$fresh/headwater"
make demo
test -s demo/page.html
test -s demo/run.json
.venv/bin/headwater page demo
.venv/bin/headwater audit demo --sample 8
echo "fresh clone: demo works"
