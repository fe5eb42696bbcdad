#!/bin/bash
# Sets up what a make target needs, from nothing, and leaves alone what is there.
#
#   tools/setup.sh run     .venv with aemd, aemctl, aemhttpd and the package aem
#   tools/setup.sh dev     the same, with what tests and checks take, and the programs that tests run
#   tools/setup.sh bench   the same, with the peers that benchmarks compare with
#   tools/setup.sh deb     what builds the Debian package
#   tools/setup.sh proto   .venv-proto with the code generator
#
# Python packages come hash-locked from requirements/. Debian packages are installed only as root on a machine
# with apt; without them the tests that need them are skipped and say so.
set -euo pipefail
cd "$(dirname "$0")/.."

say() { echo "setup: $*" >&2; }
die() { say "$*"; exit 1; }

python_found() {
    local python
    for python in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$python"
            return
        fi
    done
    return 1
}

apt() {
    local missing=() package
    [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || return 0
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok installed' || missing+=("$package")
    done
    [ ${#missing[@]} = 0 ] && return 0
    say "installing ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update >&2 || true
    # Services of these packages are for the tests to start, not for this machine to run.
    local policy=/usr/sbin/policy-rc.d made=
    if [ ! -e $policy ]; then printf '#!/bin/sh\nexit 101\n' >$policy; chmod 755 $policy; made=1; fi
    apt-get -qq install -y --no-install-recommends "${missing[@]}" >/dev/null 2>&1 ||
        say "could not install ${missing[*]}; what needs them is skipped"
    [ -z "$made" ] || rm -f $policy
}

venv() {  # venv FOLDER: an environment there that works
    local folder=$1 python
    "$folder/bin/python" -c '' 2>/dev/null && return
    rm -rf "$folder"
    python=$(python_found) || { apt python3 python3-venv; python=$(python_found); } ||
        die "Python 3.11 or newer is needed; set PYTHON to it"
    "$python" -m venv "$folder" 2>/dev/null || {
        rm -rf "$folder"
        apt python3-venv
        "$python" -m venv "$folder" || die "$python has no module venv; install python3-venv"
    }
}

install() {  # install FOLDER STAMP FILE...: what the hash-locked files name, once
    local folder=$1 stamp=$1/.stamp-$2 sum
    shift 2
    sum=$(cat "$@" tools/setup.sh | sha256sum)
    [ "$(cat "$stamp" 2>/dev/null)" = "$sum" ] && return 1
    local file
    for file in "$@"; do
        case $file in
        *.txt) "$folder/bin/python" -m pip install -q --disable-pip-version-check --require-hashes -r "$file" ;;
        esac
    done
    echo "$sum" >"$stamp"
}

aemd() {  # aemd FILE...: .venv with the packages of the files and, editable, our own
    venv .venv
    local projects=(clients/python . clients/python/examples/aemhttpd)
    if install .venv "$1" "requirements/$1.txt" "${projects[@]/%//pyproject.toml}"; then
        local args=() project
        for project in "${projects[@]}"; do args+=(-e "$project"); done
        .venv/bin/python -m pip install -q --disable-pip-version-check --no-deps --no-build-isolation "${args[@]}"
    fi
}

grpcurl() {  # grpcurl VERSION: into .venv/bin, where there is a Go toolchain
    local stamp=.venv/.stamp-grpcurl
    command -v go >/dev/null || return 0
    [ "$(cat $stamp 2>/dev/null)" = "$1" ] && return 0
    if GOBIN=$PWD/.venv/bin go install "github.com/fullstorydev/grpcurl/cmd/grpcurl@$1" 2>/dev/null; then
        echo "$1" >$stamp
    else
        say "grpcurl cannot be built; the test that runs it is skipped"
    fi
}

case ${1:-} in
run)
    [ -e .venv/.stamp-dev ] && aemd dev || aemd run
    ;;
dev)
    apt chromium curl fish man-db procps systemd tzdata util-linux wrk zsh
    aemd dev
    grpcurl v1.9.4  # 1.9.2 and 1.9.3 do not take -unix
    ;;
bench)
    apt curl procps redis-server dbus wrk
    aemd dev
    install .venv bench requirements/bench.txt || true
    ;;
deb)
    apt debhelper dpkg-dev fakeroot lintian python3 python3-venv
    ;;
proto)
    venv .venv-proto
    install .venv-proto proto requirements/proto.txt || true
    ;;
*)
    sed -n '2,12p' "$0"
    exit 2
    ;;
esac
