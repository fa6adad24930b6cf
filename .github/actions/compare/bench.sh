#!/usr/bin/env bash
# Run `onnxdecomp bench` as the action's inputs say; its exit code becomes an output, so that the comment is written
# before the gate ends the job.
set -uo pipefail

mkdir -p "$FOLDER"
read -ra models <<<"$MODELS"
read -ra further <<<"$ARGUMENTS"
line=(onnxdecomp bench "$ORIGINAL" "${models[@]}" --duration "$DURATION")
[ -z "$DATA" ] || line+=(--data "$DATA")
[ -z "$METRIC" ] || line+=(--metric "$METRIC")
[ -z "$GATE" ] || line+=(--gate "$GATE")
line+=(--json "$FOLDER/record.json" --report "$FOLDER/report.html" --markdown "$FOLDER/report.md")

"${line[@]}" ${further[@]+"${further[@]}"} 2> >(tee "$FOLDER/error.txt" >&2)
code=$?
wait  # for tee

[ ! -f "$FOLDER/report.md" ] || cat "$FOLDER/report.md" >>"${GITHUB_STEP_SUMMARY:-/dev/null}"
{
    echo "code=$code"
    echo "passed=$([ "$code" = 0 ] && echo true || echo false)"
    echo "record=$FOLDER/record.json"
} >>"$GITHUB_OUTPUT"
