#!/usr/bin/env bash
# Runs the VM tests on machines made without Nix: Debian with systemd and cgroup v2, booted as User
# Mode Linux by a runner that has the functions of the NixOS test driver.
#
#   tests/vm/run.sh BINARY [NAME ...]      default: every test but `container`, which needs Docker in its machine
#
# BINARY is the static binary. VMRIG is the folder with vm-image.sh and vmtest.py (default: vmrig in
# the folder `shared` beside the checkout); VMTEST_BASE is a cache for the base system (280 MB).
# Needs root, for the network between the machines.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
[ $# -ge 1 ] || { sed -n '2,9s/^# \{0,1\}//p' "$0"; exit 2; }
binary=$(realpath "$1"); shift
rig=${VMRIG:-$here/../../../shared/vmrig}
for program in vm-image.sh vmtest.py; do
  [ -e "$rig/$program" ] || { echo "no $program in $rig: VMRIG names the folder of the runner, see docs/nix.md" >&2; exit 3; }
done
base=${VMTEST_BASE:-${XDG_CACHE_HOME:-$HOME/.cache}/lean-proxy-vm}
systemd=${VMTEST_SYSTEMD:-$(systemctl --version | sed -n '1s/^systemd \([0-9]*\).*/\1/p')} # the base system has the release of this machine
names=("$@")
[ $# -gt 0 ] || for file in "$here"/*.toml; do names+=("$(basename "$file" .toml)"); done

# iptables, because NixOS has a firewall; python3-grpcio for the test of gRPC
VM_PKGS=${VM_PKGS:+$VM_PKGS,}iptables,python3-grpcio "$rig/vm-image.sh" "$base" >&2
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cc -std=c11 -O2 -Wall -Wextra -Werror -static -o "$work/flood" "$here/world/flood.c"
failed=()
for name in "${names[@]}"; do
  python3 "$here/rig.py" "$name" "$systemd" > "$work/$name.json"
  start=$SECONDS
  if python3 "$rig/vmtest.py" "$work/$name.json" "$here/$name.py" --base "$base" --set "BIN=$binary" --set "FLOOD=$work/flood" --out "$work/out" > "$work/$name.log" 2>&1; then
    echo "vm $name: $(tail -1 "$work/$name.log") ($((SECONDS - start)) s)"
    grep -E 'memory\.(current|peak) |clients, |fresh request|exposure|flood: ' "$work/$name.log" | grep -v 'must succeed' | sed 's/^ *[0-9.]* */    /' || true
  else
    failed+=("$name")
    echo "vm $name: FAILED"
    sed 's/^/    /' "$work/$name.log"
  fi
done
[ ${#failed[@]} -eq 0 ] || { echo "VM tests failed: ${failed[*]}"; exit 1; }
