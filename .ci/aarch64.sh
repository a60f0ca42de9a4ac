#!/usr/bin/env bash
# Build for AArch64 with a cross compiler and test under emulation, on x86-64 with Debian's packages:
#   bash .ci/aarch64.sh FOLDER SDIST PYTHON
# FOLDER is scratch; SDIST is the source distribution; PYTHON has cylstm and pytest installed and is
# of the version of Debian's python3, whose AArch64 packages are unpacked, not installed.
# Emulation shows neither the memory order of real hardware nor its speed.
set -euo pipefail
cd "$(dirname "$0")/.."
folder=$(realpath "$1") sdist=$(realpath "$2") host=$3
version=$("$host" -c 'import sys; print("{}.{}".format(*sys.version_info))')
root=$folder/root site=$folder/site
mkdir -p "$root" "$site" "$folder"/{sysconfig,debs,src,apt/lists/partial,apt/cache/archives/partial}

cross_tools() {
    if command -v qemu-aarch64-static && command -v aarch64-linux-gnu-gcc &&
        [ -d /usr/aarch64-linux-gnu/include ]; then return; fi
    apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends \
        qemu-user-static gcc-aarch64-linux-gnu libc6-dev-arm64-cross >/dev/null
}

# An AArch64 Python in $root; apt-get keeps its own lists of that architecture.
emulated_python() {
    local arm=(-qq -o "APT::Architecture=arm64" -o "APT::Architectures=arm64"
        -o "Dir::State::Lists=$folder/apt/lists" -o "Dir::Cache=$folder/apt/cache"
        -o "Dir::State::status=/dev/null" -o "APT::Sandbox::User=root")
    apt-get "${arm[@]}" update
    (cd "$folder/debs" && apt-get "${arm[@]}" download \
        "python$version-minimal" "libpython$version"-{minimal,stdlib,dev} libc6 libexpat1 zlib1g \
        libssl3 libffi8 libbz2-1.0 liblzma5 libsqlite3-0 libuuid1 libgcc-s1 libstdc++6 libgomp1 \
        libcrypt1)
    local deb
    for deb in "$folder"/debs/*.deb; do dpkg-deb -x "$deb" "$root"; done
    # The versions that PYTHON has: the two machines are to differ in nothing else.
    "$host" -m pip freeze | grep -E '^(numpy|scipy|pytest|hypothesis|threadpoolctl)==' |
        xargs "$host" -m pip install -qq --target "$site" --only-binary=:all: \
            --python-version "$version" --platform manylinux_2_28_aarch64 \
            --platform manylinux_2_27_aarch64 --platform manylinux2014_aarch64
    cat >"$folder/python" <<END
#!/bin/sh
export QEMU_LD_PREFIX=$root PYTHONDONTWRITEBYTECODE=1
export PYTHONPATH=$site:$folder/src/src\${PYTHONPATH:+:\$PYTHONPATH}
exec qemu-aarch64-static $root/usr/bin/python$version "\$@"
END
    chmod +x "$folder/python"
    echo "import sys; sys.executable = '$folder/python'" >"$site/sitecustomize.py"
}

cross_build() {
    "$host" -m venv "$folder/host"
    "$host" -m pip freeze | grep -E '^(numpy|scipy)==' |
        xargs "$folder/host/bin/pip" install -qq --upgrade cython setuptools
    tar -x -f "$sdist" -C "$folder/src" --strip-components=1
    cp "$root/usr/lib/python$version/_sysconfigdata__aarch64-linux-gnu.py" "$folder/sysconfig"
    (
        cd "$folder/src"
        export _PYTHON_HOST_PLATFORM=linux-aarch64 PYTHONPATH=$folder/sysconfig
        export _PYTHON_SYSCONFIGDATA_NAME=_sysconfigdata__aarch64-linux-gnu
        export CFLAGS="-I$root/usr/include/python$version -I$root/usr/include"
        "$folder/host/bin/python" setup.py -q build_ext --inplace --build-temp "$folder/temp" \
            >"$folder/build.log" 2>&1 || { cat "$folder/build.log"; exit 1; }
    )
    "$folder/python" -m cylstm info
}

# The cases of tests/test_bits.py, here and there.
same_bits() {
    local code='import sys; sys.path.insert(0, "tests"); import test_bits; exec(test_bits.OUTPUTS)'
    "$host" -c "$code" "$folder/here.npz"
    "$folder/python" -c "$code" "$folder/there.npz"
    "$host" .ci/same_bits.py "$folder/here.npz" "$folder/there.npz"
}

# What is about the machine, and a part of what is about the mathematics: emulation takes ten times
# as long.
tests() {
    emulated() { "$folder/python" -m pytest -q -p no:cacheprovider "$@"; }
    emulated tests/test_{native,floating_point,activations}.py
    emulated -k "linear or activation or lists" tests/test_linear.py
    emulated -k "lstm and not float32" tests/test_{forward,gradients}.py
    emulated -k "changes_no_bit and lstm-3 or forked" tests/test_threads.py
}

for step in cross_tools emulated_python cross_build same_bits tests; do
    start=$SECONDS
    "$step"
    echo "--- $step: $((SECONDS - start)) s"
done
