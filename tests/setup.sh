#!/usr/bin/env bash
# Installs the Debian packages that the Makefile's targets need; asks for sudo only where it must.
# The laboratory's own list is `leap-lab check-host`; this one is for a machine with nothing built yet.
set -euo pipefail

packages=(
    # building
    gcc make
    # images
    mmdebstrap uidmap cpio zstd
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
# A server package must not start a service on this machine.
DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 "${sudo[@]}" apt-get install -y -qq --no-install-recommends "${missing[@]}"
