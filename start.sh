#!/usr/bin/env bash
# Start the API, wait until it is ready, start the page; end both as soon as one of them ends or the API hangs.
#     bash start.sh        # then open http://localhost:7860; any bash since 3.2, which macOS has
set -euo pipefail
READY_SECONDS=60     # for the largest model
GRACEFUL_SECONDS=4   # for predictions in flight
KILL_SECONDS=7       # for all to end by themselves; docker stop kills after 10
ANSWER_SECONDS=5     # for /health, every 10 s; a busy API answers at once, since the model runs beside the event loop

# from any folder, through a link, whatever CDPATH is; a relative MODEL_PATH starts at the caller's folder
[[ ${MODEL_PATH:-/} == [/\\]* || $MODEL_PATH == [A-Za-z]:* ]] || export MODEL_PATH=$PWD/$MODEL_PATH
here=$(readlink -f "${BASH_SOURCE[0]}") || here=${BASH_SOURCE[0]} # macOS before 12.3 has no -f
cd "$(dirname "$here")"
export API_PORT="${API_PORT:-8001}" UI_PORT="${UI_PORT:-${PORT:-7860}}" # many hosts set PORT

# what can't work is said at once, in one line
fail() { echo "start.sh: $1" >&2; exit 1; }
command -v curl >/dev/null || fail "curl is missing: install it, for instance with 'apt-get install curl'"
python -c 'import sys, importlib.util as u; sys.exit(sys.version_info < (3, 11) or None in map(u.find_spec, sys.argv[1:]))' \
    fastapi uvicorn sklearn streamlit 2>/dev/null ||
    fail "$(python -V 2>/dev/null || echo no python) is found, 3.11 or newer with the packages is needed: run '. .venv/bin/activate' (on Windows .venv/Scripts/activate) or 'pip install -r requirements.txt'"
for port in "$API_PORT" "$UI_PORT"; do
    [[ $port =~ ^[1-9][0-9]{0,4}$ && $port -le 65535 ]] || fail "'$port' is no port: set API_PORT or UI_PORT to one from 1 to 65535"
    # else an older copy's API would be taken for ours
    ! (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null || fail "port $port is taken: stop what uses it, or set API_PORT or UI_PORT"
done
[[ $API_PORT != "$UI_PORT" ]] || fail "port $API_PORT can't be both API_PORT and UI_PORT: set one of them to another"

# Streamlit writes below HOME, which is / or read-only for an arbitrary user of a container
[[ -w ${HOME:-/} ]] || export HOME=/tmp

# whatever the reason for leaving: ask all to end; kill what is left in time, or at a second Ctrl-C
leave() {
    set +eu # bash 3.2 calls an empty array unset
    trap '' TERM
    read -rd '' -a left <<<"$(jobs -pr)"
    trap 'kill -KILL "${left[@]}" 2>/dev/null' INT
    kill -TERM "${left[@]}" 2>/dev/null
    end=$((SECONDS + KILL_SECONDS))
    # by the processes: jobs may go on listing one that ended while bash was told to leave
    while kill -0 "${left[@]}" 2>/dev/null && ((SECONDS < end)); do sleep 0.1; done
    kill -KILL "${left[@]}" 2>/dev/null
    wait
}
trap leave EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

# what ends by itself ends all, with its code
check() {
    kill -0 "$2" 2>/dev/null && return
    wait "$2" && code=0 || code=$?
    echo "start.sh: the $1 ended with code $code" >&2
    exit "$code"
}
# whether the API answers; no proxy stands between
ask_health=(curl -sf -o /dev/null --noproxy '*' "http://127.0.0.1:$API_PORT/health")

# the page has something to show when the API is ready
python -m uvicorn main_api:app --host 127.0.0.1 --port "$API_PORT" --log-level warning --timeout-graceful-shutdown "$GRACEFUL_SECONDS" & api=$!
until "${ask_health[@]}" --max-time 1; do
    check API "$api"
    ((SECONDS < READY_SECONDS)) || fail "the API was not ready in $READY_SECONDS seconds"
    sleep 0.1
done

python -m streamlit run main_ui.py --server.address 0.0.0.0 --server.port "$UI_PORT" & page=$!
# a hung API doesn't end by itself: end all, so that the platform starts anew; to compute is not to hang,
# unless the model's code lets no other thread run (holds the GIL)
silences=0
for ((second = 1; ; second++)); do
    sleep 1 & wait $! || true # in the foreground it would keep a signal waiting
    check API "$api"; check page "$page"
    ((second % 10 == 0)) || continue
    "${ask_health[@]}" --max-time "$ANSWER_SECONDS" &
    if wait $!; then silences=0; else silences=$((silences + 1)); fi
    ((silences < 3)) || fail "the API hangs: three times in a row /health had no answer in $ANSWER_SECONDS seconds"
done
