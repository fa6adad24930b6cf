#!/usr/bin/env bash
# Write the report as a comment on the pull request: the one of its name, if there is one, else a new one.
set -euo pipefail

marker="<!-- onnxdecomp: $NAME -->"
failed=""
if [ -f "$ERROR" ]; then
    failed=$(grep -m 1 '^onnxdecomp: error: ' "$ERROR" || true)
fi
body=$(mktemp)
trap 'rm -f "$body"' EXIT
{
    echo "$marker"
    [ -z "$failed" ] || printf '**%s**\n\n' "${failed#onnxdecomp: error: }"
    # A comment holds 65,536 characters.
    [ ! -f "$REPORT" ] || head -c 60000 "$REPORT"
} >"$body"

known=$(gh api --paginate "repos/$REPOSITORY/issues/$NUMBER/comments" \
    --jq ".[] | select(.body | startswith(\"$marker\")) | .id" | head -n 1)
if [ -n "$known" ]; then
    gh api --method PATCH "repos/$REPOSITORY/issues/comments/$known" -F "body=@$body" >/dev/null
else
    gh api --method POST "repos/$REPOSITORY/issues/$NUMBER/comments" -F "body=@$body" >/dev/null
fi
