// SPDX-License-Identifier: GPL-2.0-only
#include "explain/tables.h"

namespace tsdroptrace::explain {

namespace {

using enum Evidence;

constexpr OwnerPattern table_of_owners[] = {
    // Comments say more than names: they are written with each rule.
    {comment, "wg-quick(8) rule for", "wg-quick", "AllowedIPs in the WireGuard configuration"},
    {comment, "cali:", "Calico", "kubectl get networkpolicies -A"},

    {chain, "ts-*", "Tailscale", "tailscale set --netfilter-mode"},
    {chain, "DOCKER-USER", "the administrator", ""},
    {chain, "DOCKER*", "Docker", "docker network, docker run --publish, /etc/docker/daemon.json"},
    {chain, "ufw-*", "ufw", "ufw allow, ufw route allow"},
    {chain, "ufw6-*", "ufw", "ufw allow, ufw route allow"},
    {chain, "IN_*", "firewalld", "firewall-cmd --permanent"},
    {chain, "FWDI_*", "firewalld", "firewall-cmd --permanent"},
    {chain, "FWDO_*", "firewalld", "firewall-cmd --permanent"},
    {chain, "KUBE-NWPLCY*", "kube-router", "kubectl get networkpolicies -A"},
    {chain, "KUBE-POD-FW*", "kube-router", "kubectl get networkpolicies -A"},
    {chain, "KUBE-ROUTER*", "kube-router", "kubectl get networkpolicies -A"},
    {chain, "KUBE-*", "kube-proxy", "kubectl get services -A"},
    {chain, "cali-*", "Calico", "kubectl get networkpolicies -A"},
    {chain, "CILIUM_*", "Cilium", "cilium monitor -t drop"},
    {chain, "CNI-*", "a CNI plugin", "/etc/cni/net.d"},
    {chain, "NETAVARK*", "Podman (netavark)", "podman network"},
    {chain, "FLANNEL-*", "Flannel", "Flannel's configuration"},
    {chain, "WEAVE-*", "Weave Net", "Weave Net's configuration"},
    {chain, "ISTIO_*", "Istio", "Istio's configuration of the pod"},
    {chain, "LIBVIRT_*", "libvirt", "virsh net-edit"},
    {chain, "f2b-*", "fail2ban", "fail2ban-client unban"},
    {chain, "sshguard", "SSHGuard", "SSHGuard's whitelist"},
    {chain, "CROWDSEC_CHAIN*", "CrowdSec", "cscli decisions delete"},
    {chain, "FWKNOP_*", "fwknop", "/etc/fwknop/access.conf"},
    {chain, "LOCALINPUT", "csf", "csf -a"},
    {chain, "DENYIN", "csf", "csf -a"},
    {chain, "DENYOUT", "csf", "csf -a"},
    {chain, "LOGDROPIN", "csf", "csf -a"},
    {chain, "mwan3_*", "OpenWrt (mwan3)", "/etc/config/mwan3"},
    {chain, "nixos-fw*", "NixOS", "networking.firewall in the NixOS configuration"},
    {chain, "netbird-*", "NetBird", "NetBird's policies"},
    {chain, "NETBIRD-*", "NetBird", "NetBird's policies"},

    {table, "* docker-bridges", "Docker", "docker network, docker run --publish, /etc/docker/daemon.json"},
    {table, "* firewalld", "firewalld", "firewall-cmd --permanent"},
    {table, "* netavark", "Podman (netavark)", "podman network"},
    {table, "* libvirt_network", "libvirt", "virsh net-edit"},
    {table, "* f2b-table", "fail2ban", "fail2ban-client unban"},
    {table, "* sshguard", "SSHGuard", "SSHGuard's whitelist"},
    {table, "* crowdsec*", "CrowdSec", "cscli decisions delete"},
    {table, "inet fw4", "OpenWrt (fw4)", "/etc/config/firewall"},
    {table, "inet nixos-fw", "NixOS", "networking.firewall in the NixOS configuration"},
    {table, "inet opensnitch", "OpenSnitch", "OpenSnitch's system firewall rules"},
    {table, "* wg-quick-*", "wg-quick", "AllowedIPs in the WireGuard configuration"},
    {table, "inet mullvad", "Mullvad VPN", "mullvad lockdown-mode, mullvad lan"},
    {table, "inet nordvpn", "NordVPN", "nordvpn set killswitch, nordvpn allowlist"},
    {table, "inet cloudflare-warp", "Cloudflare WARP", "warp-cli tunnel"},
    {table, "ip netbird", "NetBird", "NetBird's policies"},
};

} // namespace

std::span<const OwnerPattern> owners() {
    return table_of_owners;
}

} // namespace tsdroptrace::explain
