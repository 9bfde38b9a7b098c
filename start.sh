#!/usr/bin/env bash
# Start the API, wait until it is ready, start the page, and end both as soon as one of them ends.
#     bash start.sh        # then open http://localhost:7860
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")"
export API_PORT="${API_PORT:-8001}" UI_PORT="${UI_PORT:-7860}"
READY_SECONDS=60     # for the largest model
GRACEFUL_SECONDS=4   # for predictions in flight; docker stop kills after 10
serve_api=(python -m uvicorn main_api:app --host 127.0.0.1 --port "$API_PORT")
serve_page=(python -m streamlit run main_ui.py --server.port "$UI_PORT")

fail() {
    echo "start.sh: $1" >&2
    exit 1
}

((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] >= 403)) ||
    fail "bash $BASH_VERSION has no 'wait -n': run '${serve_api[*]}' and, in another terminal, '${serve_page[*]}'"
command -v curl >/dev/null || fail "curl is missing: install it, for instance with 'apt-get install curl'"
for port in "$API_PORT" "$UI_PORT"; do
    # else an older copy's API would be taken for ours
    ! (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null || fail "port $port is taken: stop what uses it, or set API_PORT or UI_PORT"
done
# Streamlit writes below HOME, which is / or read-only for an arbitrary user of a container
[ -w "${HOME:-/}" ] || export HOME=/tmp

# whatever the reason for leaving: ask both to end, and wait for what they still answer
trap 'set +e; trap "" INT TERM; kill $(jobs -p) 2>/dev/null; wait' EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

"${serve_api[@]}" --log-level warning --timeout-graceful-shutdown "$GRACEFUL_SECONDS" &
api=$!
until curl -sf -o /dev/null --noproxy '*' --max-time 1 "http://127.0.0.1:$API_PORT/health"; do
    kill -0 "$api" 2>/dev/null || { wait "$api" || code=$?; echo "start.sh: the API ended before it was ready" >&2; exit "${code:-1}"; }
    ((SECONDS < READY_SECONDS)) || fail "the API was not ready in $READY_SECONDS seconds"
    sleep 0.1
done

"${serve_page[@]}" --server.address 0.0.0.0 &
wait -n
