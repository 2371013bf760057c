# Sourced by ./dev: makes .venv with everything locked, from nothing but python3. A set-up that failed leaves no .venv.

say() { echo "dev: $*" >&2; }

find_python() {
    for name in python3 python3.14 python3.13 python3.12 python3.11; do
        if command -v "$name" >/dev/null 2>&1 &&
            "$name" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    say "Python 3.11 to 3.14 is needed; install one and try again"
    exit 1
}

# Print what this machine can make an environment with; nothing when it cannot. Debian's python3 alone has no ensurepip.
environment_tool() {
    if "$1" -c 'import ensurepip, venv' 2>/dev/null; then
        echo "$1 -m venv"
    elif command -v uv >/dev/null 2>&1; then
        echo "uv venv --quiet --seed --python $(command -v "$1")"
    elif "$1" -c 'import virtualenv' 2>/dev/null; then
        echo "$1 -m virtualenv --quiet"
    elif command -v virtualenv >/dev/null 2>&1; then
        echo "virtualenv --quiet --python $1"
    fi
}

# Print the command that installs what makes environments, for the package manager of this machine.
install_command() {
    if command -v apt-get >/dev/null 2>&1; then
        echo "apt-get install -y $1-venv"
    elif command -v dnf >/dev/null 2>&1; then
        echo "dnf install -y python3-virtualenv"
    elif command -v apk >/dev/null 2>&1; then
        echo "apk add py3-virtualenv"
    elif command -v zypper >/dev/null 2>&1; then
        echo "zypper --non-interactive install python3-virtualenv"
    elif command -v pacman >/dev/null 2>&1; then
        echo "pacman -S --noconfirm python-virtualenv"
    fi
}

# Print the same, after installing it where that is allowed; else say what to type, and exit.
need_environment_tool() {
    tool=$(environment_tool "$1")
    install=$(install_command "$1")
    if [ -z "$tool" ] && [ -z "$install" ]; then
        say "$1 has no ensurepip, so it can make no environment: install uv or virtualenv, and try again"
        exit 1
    fi
    if [ -z "$tool" ] && [ "$(id -u)" != 0 ]; then
        say "$1 has no ensurepip, so it can make no environment. Type 'sudo $install' (or install uv), and try again"
        exit 1
    fi
    if [ -z "$tool" ]; then
        say "$1 has no ensurepip: $install"
        case $install in apt-get*) apt-get update -q >/dev/null || true ;; esac
        said=$(DEBIAN_FRONTEND=noninteractive $install 2>&1) || echo "$said" >&2
        tool=$(environment_tool "$1")
        if [ -z "$tool" ]; then
            say "'$install' did not help; install uv or virtualenv, and try again"
            exit 1
        fi
    fi
    echo "$tool"
}

# Hold a lock until descriptor 9 is closed, so that one ./dev prepares .venv and another one waits for it.
lock() {
    exec 9>.dev-lock
    "$1" - <<'TXT'
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    print("dev: waits for another ./dev, which prepares .venv", file=sys.stderr)
    fcntl.flock(9, fcntl.LOCK_EX)
TXT
}

is_ready() {
    [ "$(cat .venv/stamp 2>/dev/null)" = "$1" ] && .venv/bin/python -c '' 2>/dev/null
}

setup() {
    # the place too: an environment that was moved or copied runs the programs of the old place
    stamp="$(cat requirements.lock pyproject.toml | cksum) $(pwd)"
    if is_ready "$stamp"; then
        return
    fi
    python=$(find_python)
    lock "$python"
    is_ready "$stamp" || prepare "$python" "$stamp"
    exec 9>&-
}

prepare() {
    say "preparing .venv (once)"
    trap 'code=$?; rm -rf .venv; exit $code' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    case "$(cat .venv/stamp 2>/dev/null)" in
    *" $(pwd)") .venv/bin/python -c '' 2>/dev/null || rm -rf .venv ;; # only the lock has changed: install the difference
    *) rm -rf .venv ;;
    esac
    rm -f .venv/stamp
    if [ ! -d .venv ]; then
        tool=$(need_environment_tool "$1")
        $tool .venv >&2
    fi
    .venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.lock >&2
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e . >&2
    echo "$2" >.venv/stamp
    trap - EXIT INT TERM
}
