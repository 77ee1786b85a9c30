# shellcheck shell=bash
# SPDX-License-Identifier: GPL-2.0-only
# An apt of our own, for what is put into test VMs: the machine's own sources and packages are never touched, and no
# root is needed.

mirror=${TSDROPTRACE_MIRROR:-http://deb.debian.org/debian}
security_mirror=${TSDROPTRACE_SECURITY_MIRROR:-$mirror-security}

# private_apt DIR SUITE [security]: from now on apt-get and apt-cache are about the packages of SUITE, and everything
# they read or write for us lives below DIR. No package counts as installed.
private_apt() {
    local apt_dir=$1 suite=$2 security=${3:-}
    local keyring=/usr/share/keyrings/debian-archive-keyring.gpg
    mkdir -p "$apt_dir"/{lists/partial,cache/archives/partial,parts}
    : >"$apt_dir/status"
    echo "deb [arch=amd64 signed-by=$keyring] $mirror $suite main" >"$apt_dir/sources.list"
    if [ -n "$security" ]; then
        echo "deb [arch=amd64 signed-by=$keyring] $security_mirror $suite-security main" >>"$apt_dir/sources.list"
    fi
    cat >"$apt_dir/apt.conf" <<APT_CONF
Dir::State "$apt_dir";
Dir::State::lists "$apt_dir/lists";
Dir::State::status "$apt_dir/status";
Dir::Cache "$apt_dir/cache";
Dir::Etc::sourcelist "$apt_dir/sources.list";
Dir::Etc::sourceparts "$apt_dir/parts";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "$apt_dir/parts";
APT::Architecture "amd64";
APT::Architectures { "amd64"; };
APT::Sandbox::User "";
APT::Update::Post-Invoke "";
APT::Update::Post-Invoke-Success "";
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Post-Invoke;
Acquire::Languages "none";
Acquire::PDiffs "false";
Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled "false";
Acquire::Retries "1";
Acquire::http::Timeout "20";
APT_CONF
    # The machine's own apt.conf.d is still read, before this: a proxy set there is wanted.
    export APT_CONFIG=$apt_dir/apt.conf
}
