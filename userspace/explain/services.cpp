// SPDX-License-Identifier: GPL-2.0-only
#include "explain/tables.h"

namespace tsdroptrace::explain {

namespace {

// Single addresses first, then ranges: the first that holds the address wins.
constexpr Service table_of_services[] = {
    {"100.100.100.100/32", "Tailscale's own MagicDNS and never comes from another machine", never_accept, true},
    {"100.100.2.136/32", "Alibaba Cloud's DNS", "100.100.0.0/16", true},
    {"100.100.2.138/32", "Alibaba Cloud's DNS", "100.100.0.0/16", true},
    {"100.100.2.148/32", "Alibaba Cloud's package mirror", "100.100.0.0/16"},
    {"100.100.2.158/32", "Alibaba Cloud's package mirror", "100.100.0.0/16"},
    {"100.100.100.200/32", "Alibaba Cloud's instance metadata service", "100.100.100.200/32"},
    {"100.125.1.250/32", "Huawei Cloud's DNS", "", true},
    {"100.125.64.250/32", "Huawei Cloud's DNS", "", true},
    {"169.254.169.254/32", "the cloud's instance metadata service", ""},
    {"169.254.169.253/32", "the DNS of an Amazon VPC", "", true},
    {"fd00:ec2::254/128", "Amazon EC2's instance metadata service", ""},
    {"fd00:ec2::253/128", "the DNS of an Amazon VPC", "", true},
    {"169.254.20.10/32", "the usual address of Kubernetes' NodeLocal DNSCache", "", true},
    {"168.63.129.16/32", "Azure's DNS and health probe", "", true},

    {"100.103.0.0/16", "in 100.103.0.0/16, where Alibaba Cloud has its container registry", "100.103.0.0/16"},
    {"100.115.92.0/23", "in 100.115.92.0/23, ChromeOS's virtual machines; Tailscale never assigns it", ""},
    {"100.64.0.0/16", "in 100.64.0.0/16, the default join network of OVN-Kubernetes and Kube-OVN", ""},
    {"100.88.0.0/16", "in 100.88.0.0/16, the default transit network of OVN-Kubernetes", ""},
    {"100.65.0.0/16", "in 100.65.0.0/16, which FortiSASE uses", ""},
    {"100.96.0.0/12", "in 100.96.0.0/12, which Cloudflare WARP uses", ""},
    {"100.64.0.0/10", "in 100.64.0.0/10, which clouds, Internet providers (carrier-grade NAT) and several VPNs share",
     ""},
    {"fd7a:115c:a1e0::/48", "in fd7a:115c:a1e0::/48, Tailscale's own IPv6 range", never_accept},
};

} // namespace

std::span<const Service> services() {
    return table_of_services;
}

} // namespace tsdroptrace::explain
