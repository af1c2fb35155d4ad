#!/usr/bin/env bash
# Installs the Debian packages that the Makefile's targets need; asks for sudo only where it must.
# For a machine with nothing built yet; what is built says it with `leap-lab check-host`, and a
# test holds the two lists together.
set -euo pipefail

packages=(
    # building
    gcc make
    # `make fuzz`
    g++
    # images
    mmdebstrap dpkg debian-archive-keyring uidmap cpio xz-utils gnupg openssl
    # the laboratory: machines, network, evidence
    qemu-system-x86 ovmf ipxe swtpm iproute2 ethtool socat tcpdump util-linux mount
    dosfstools mtools gdisk e2fsprogs cryptsetup-bin qemu-utils zstd
    # the build whose failures are tested, from the host's own programs
    erofs-utils
    # real peers in the tests
    openssh-client openssh-sftp-server restic dnsmasq-base tftp-hpa atftp curl
    udhcpc isc-dhcp-client
    # other people's signing tools, verifiers and tokens
    sbsigntool efitools softhsm2
)
[ -x /usr/sbin/sshd ] || packages+=(openssh-server)
# the peer of `leap-lab bench-disks`; it starts no service that is not asked for
[ -x /usr/sbin/nginx ] || packages+=(nginx-light)
# the relay in the tests of network boot; neither does it
[ -x /usr/sbin/dhcrelay ] || packages+=(isc-dhcp-relay)
# the arm64 machine of `leap-lab matrix`
[ -x /usr/bin/qemu-system-aarch64 ] || packages+=(qemu-system-arm)
[ -e /usr/share/AAVMF/AAVMF_CODE.fd ] || packages+=(qemu-efi-aarch64)

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
if [[ " ${missing[*]} " == *" nginx-light "* && -d /run/systemd/system ]]; then
    "${sudo[@]}" systemctl disable --quiet nginx.service
fi
if [[ " ${missing[*]} " == *" isc-dhcp-relay "* && -d /run/systemd/system ]]; then
    "${sudo[@]}" systemctl disable --quiet isc-dhcp-relay.service
fi
