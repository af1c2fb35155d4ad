#!/usr/bin/env bash
# Installs the Debian packages that the Makefile's targets need; asks for sudo only where it must.
# For a machine with nothing built yet; what is built says it with `leap-lab check-host`, and a
# test holds the two lists together.
set -euo pipefail

packages=(
    # building
    gcc make
    # images
    mmdebstrap dpkg debian-archive-keyring uidmap cpio xz-utils
    # the laboratory: machines, network, evidence
    qemu-system-x86 ovmf iproute2 ethtool socat tcpdump util-linux mount
    dosfstools mtools gdisk e2fsprogs cryptsetup-bin
    # real peers in the tests
    openssh-client openssh-sftp-server restic dnsmasq-base tftp-hpa atftp curl
)
[ -x /usr/sbin/sshd ] || packages+=(openssh-server)

missing=()
for package in "${packages[@]}"; do
    state=$(dpkg-query --show --showformat='${db:Status-Abbrev}' "$package" 2>/dev/null || true)
    [[ $state == ii* ]] || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
    echo "setup: every package is installed"
    exit 0
fi

echo "setup: missing: ${missing[*]}"
sudo=()
[ "$(id -u)" -eq 0 ] || sudo=(sudo)
"${sudo[@]}" apt-get update -qq
# A server package must neither start a service on this machine nor leave one enabled.
policy=/usr/sbin/policy-rc.d
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' | "${sudo[@]}" tee "$policy" >/dev/null
    "${sudo[@]}" chmod +x "$policy"
    trap '"${sudo[@]}" rm -f "$policy"' EXIT
fi
"${sudo[@]}" env DEBIAN_FRONTEND=noninteractive \
    apt-get install -y -qq --no-install-recommends "${missing[@]}"
if [[ " ${missing[*]} " == *" openssh-server "* && -d /run/systemd/system ]]; then
    "${sudo[@]}" systemctl disable --quiet ssh.service ssh.socket
fi
