// SPDX-License-Identifier: GPL-2.0-only
// A datapath of Open vSwitch, made without its daemon and its tools: by generic netlink.
#pragma once

// add DATAPATH DEVICE [FLOW]...   a datapath with its own device, port 0, and another one, port 1
// show DATAPATH                   what the kernel has counted
// del DATAPATH
//
// A FLOW is IN_PORT:UDP_PORT[:ACTION[=NUMBER]]..., of IPv4; the actions are out=PORT, drop=ERROR (0: none), recirc=ID,
// ttl (takes one), ct=ZONE (commits), and meter=1, which lets next to nothing pass. One that the kernel does not know
// (drop, before 6.7) is said on standard error, and left out. Returns the exit code.
int open_vswitch(int count, char** arguments);
