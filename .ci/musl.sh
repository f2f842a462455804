#!/usr/bin/env bash
# Builds the static binary of a release, and prints its path:
#
#   .ci/musl.sh FOLDER
#
# On Debian or Ubuntu, as any user, with rustup; on other Linux systems where gcc, musl-gcc and readelf are installed.
# Uses rustup's musl target and adds it if necessary. Where that is not available, on Debian: a toolchain that is made
# once (some minutes, half a gigabyte) in MUSL_TOOLCHAIN, default lean-musl-toolchain in the user's cache folder. It
# consists of Debian's rustc-web, and std for musl, compiled from rust-web-src of the same version. These packages are
# unpacked there and not installed, so the machine's own Rust does not change.
# Exit code 3: something that it needs is not available; the message says what.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
out=$(mkdir -p "${1:?folder for the binary}" && cd "$1" && pwd)
arch=$(uname -m)
target=$arch-unknown-linux-musl
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
toolchain=${MUSL_TOOLCHAIN:-${XDG_CACHE_HOME:-$HOME/.cache}/lean-musl-toolchain}

say() { echo "musl: $*" >&2; }

cannot() { say "$*"; exit 3; }

root() {
  if [ "$(id -u)" = 0 ]; then "$@"; return; fi
  command -v sudo > /dev/null || cannot "needs root, or sudo, for: $*"
  sudo "$@"
}

# A wrapper of the toolchain's rustc, which finds its libraries and sysroot where they were unpacked.
wrap() {
  printf '#!/bin/sh\nLD_LIBRARY_PATH=%q exec %q --sysroot %q "$@"\n' \
    "$toolchain/usr/lib/$arch-linux-gnu:$toolchain/lib/$arch-linux-gnu" "$toolchain/usr/bin/rustc" "$toolchain/usr" > "$toolchain/rustc"
  chmod +x "$toolchain/rustc"
}

# Packages that a package needs, itself included, and that are not installed.
lacking() {
  apt-cache depends --recurse --no-recommends --no-suggests --no-conflicts --no-breaks --no-replaces --no-enhances "$1" |
    grep '^[a-z0-9]' | sort -u | while read -r name; do
    dpkg-query -W -f '${Status}' "$name" 2> /dev/null | grep -q 'ok installed' || echo "$name"
  done
}

unpack() {
  local debs=$work/debs version llvm deb needs
  mkdir "$debs"
  root apt-get update -qq
  version=$(apt-cache show --no-all-versions rustc-web 2> /dev/null | sed -n 's/^Version: \([0-9]*\.[0-9]*\)\..*/\1/p')
  [ -n "$version" ] || cannot "neither rustup's target $target nor Debian's rustc-web is available"
  llvm=$(apt-cache depends "libstd-rust-web-$version" | sed -n 's/.*Depends: \(libllvm[0-9.]*\)$/\1/p' | head -1)
  mapfile -t needs < <(lacking "$llvm")
  say "unpacking rustc-web $version and ${needs[*]}"
  (cd "$debs" && apt-get download -qq rustc-web rust-web-src "libstd-rust-web-$version" libstd-rust-web-dev "${needs[@]}" >&2)
  for deb in "$debs"/*.deb; do
    dpkg-deb --fsys-tarfile "$deb" |
      tar -x -C "$toolchain" --no-wildcards-match-slash --exclude='./usr/share' --exclude='./usr/src/*/'{compiler,src,tests,vendor} # keeps only library/ of the source
  done
}

# Collects what rustc links into a static program: musl's start files and libc.a, gcc's start files and unwinder.
self_contained() {
  local to=$1 musl gcc
  musl=$(dirname "$(dpkg -L musl-dev | grep '/rcrt1\.o$')")
  gcc=$(dirname "$(gcc -print-libgcc-file-name)")
  cp "$musl"/{crt1,rcrt1,Scrt1,crti,crtn}.o "$musl/libc.a" "$gcc"/{crtbegin,crtbeginS,crtend,crtendS}.o "$to/"
  musl-gcc -O2 -fPIC -ffunction-sections -c "$here/dl_find_object.c" -o "$to/dl_find_object.o"
  # libgcc.a too: C that is compiled for a generic processor calls its __popcountdi2 and similar functions
  ar -M << SCRIPT
CREATE $to/libunwind.a
ADDLIB $gcc/libgcc_eh.a
ADDLIB $gcc/libgcc.a
ADDMOD $to/dl_find_object.o
SAVE
END
SCRIPT
}

compile_std() {
  local to=$1 source
  source=$(echo "$toolchain"/usr/src/rustc-*/library)
  say "compiling std for $target"
  # shellcheck disable=SC2030 # meant for this build alone
  # std's few dependencies come from the registry, with the versions and checksums of its own Cargo.lock
  (
    cd "$work"
    export RUSTC=$toolchain/rustc RUSTC_BOOTSTRAP=1 RUSTC_STD_FORCE=1 CARGO_TARGET_DIR=$work/target CARGO_INCREMENTAL=0
    export CFG_COMPILER_HOST_TRIPLE=$arch-unknown-linux-gnu CFG_RELEASE_CHANNEL=stable __CARGO_DEFAULT_LIB_METADATA=stablestd
    export RUSTFLAGS="-Zforce-unstable-if-unmarked -Cembed-bitcode=yes -Cdebuginfo=0 \
      --remap-path-prefix=$source=/rustc/library --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
    cargo build --locked --profile dist --target "$target" --manifest-path "$source/sysroot/Cargo.toml" \
      --features panic-unwind,backtrace >&2
  )
  cp "$work/target/$target/dist/deps/"*.rlib "$to/"
}

make_toolchain() {
  local lib=$toolchain/usr/lib/rustlib/$target/lib
  rm -rf "$toolchain"
  mkdir -p "$toolchain"
  unpack
  wrap
  mkdir -p "$lib/self-contained"
  self_contained "$lib/self-contained"
  compile_std "$lib"
  rm -rf "$toolchain"/usr/src
  echo "export RUSTC=$toolchain/rustc" > "$toolchain/env.sh"
  "$toolchain/rustc" -V > "$toolchain/.complete" # written last: without it, everything is made again
}

[ "$(uname -s)" = Linux ] || cannot "runs on Linux only. Elsewhere use docker build, see the Dockerfile"
command -v cargo > /dev/null || cannot "needs cargo, from rustup"
missing=()
for tool in gcc:gcc musl-gcc:musl-tools readelf:binutils; do
  command -v "${tool%%:*}" > /dev/null || missing+=("${tool##*:}")
done
# Debian's gcc package does not contain the C library's files
case $(gcc -print-file-name=Scrt1.o 2> /dev/null || true) in /*) ;; *) missing+=(libc6-dev) ;; esac
if [ ${#missing[@]} -gt 0 ]; then
  command -v apt-get > /dev/null || cannot "needs gcc, musl-gcc and readelf (${missing[*]} by Debian's names): install them as this system does"
  root apt-get update -qq
  DEBIAN_FRONTEND=noninteractive root apt-get install -qq -y --no-install-recommends "${missing[@]}" > /dev/null
fi

# shellcheck disable=SC2031 # the toolchain's own build has a folder of its own
folder=${CARGO_TARGET_DIR:-$here/../target}/musl # one target folder belongs to one compiler
# C code of crates is compiled by musl-gcc. The linker stays plain cc, with which rustc links its own start files
# statically; musl-gcc as the linker would make a dynamic program without an error.
export "CC_${target//-/_}=musl-gcc" "AR_${target//-/_}=ar"
# Not position-independent: nothing is relocated at the start, so that constants stay pages of the file (docs/design.md).
model=CARGO_TARGET_$(tr a-z- A-Z_ <<< "$target")_RUSTFLAGS
export "$model=${!model:+${!model} }-C relocation-model=static"
has_target() { rustup target list --installed 2> /dev/null | grep -qx "$target"; }
# a toolchain that was made before is used again
if has_target || { [ ! -e "$toolchain/.complete" ] && rustup target add "$target" > /dev/null 2>&1 && has_target; }; then
  say "rustup's own target"
else
  if [ ! -e "$toolchain/.complete" ]; then
    command -v apt-get > /dev/null || cannot "rustup target add $target failed, and only Debian has another Rust for it"
    make_toolchain
  fi
  say "$(cat "$toolchain/.complete")"
  # shellcheck source=/dev/null
  . "$toolchain/env.sh"
fi
CARGO_TARGET_DIR=$folder cargo build --locked --release --target "$target" --manifest-path "$here/../Cargo.toml" >&2

binary=$folder/$target/release/lean-proxy
if readelf -lW "$binary" | grep -q INTERP || readelf -dW "$binary" | grep -q NEEDED; then
  say "$binary is not static"
  exit 1
fi
# layout.ld matches names of sections: at least 64 kB of code must be in the section that it fills
if ! readelf -SW "$binary" | grep -qE '\.text_busy +PROGBITS( +[0-9a-f]+){2} 0*[1-9a-f][0-9a-f]{4,} '; then
  say "layout.ld moved nothing: .text_busy is missing or empty"
  exit 1
fi
cp "$binary" "$out/"
say "$out/lean-proxy, $(stat -c %s "$binary") bytes, static"
echo "$out/lean-proxy"
