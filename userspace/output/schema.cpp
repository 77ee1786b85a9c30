// SPDX-License-Identifier: GPL-2.0-only
#include "output/schema.h"

namespace tsdroptrace::output {

std::string schema() {
    return R"json({
  "$schema": "https://json-schema.org/draft/2020-12/schema",
  "title": "tsdroptrace JSON lines, version 1",
  "description": "One line is one object. Fields may be added within version 1; those here are never renamed, retyped or removed.",
  "oneOf": [
    { "$ref": "#/$defs/start" },
    { "$ref": "#/$defs/drop" },
    { "$ref": "#/$defs/lost" },
    { "$ref": "#/$defs/ruleset" },
    { "$ref": "#/$defs/stopped" },
    { "$ref": "#/$defs/check" },
    { "$ref": "#/$defs/summary" }
  ],
  "$defs": {
    "time": {
      "description": "RFC 3339, UTC, nanoseconds",
      "type": "string",
      "pattern": "^[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}\\.[0-9]{9}Z$"
    },
    "count": {
      "description": "A number of up to 64 bits; a string where a double cannot hold it exactly",
      "oneOf": [
        { "type": "integer", "minimum": 0, "maximum": 9007199254740992 },
        { "type": "string", "pattern": "^[0-9]{16,20}$" }
      ]
    },
    "counts": {
      "type": "object",
      "additionalProperties": { "$ref": "#/$defs/count" }
    },
    "u8": { "type": "integer", "minimum": 0, "maximum": 255 },
    "u16": { "type": "integer", "minimum": 0, "maximum": 65535 },
    "u32": { "type": "integer", "minimum": 0, "maximum": 4294967295 },
    "u8_or_null": { "oneOf": [{ "$ref": "#/$defs/u8" }, { "type": "null" }] },
    "u16_or_null": { "oneOf": [{ "$ref": "#/$defs/u16" }, { "type": "null" }] },
    "u32_or_null": { "oneOf": [{ "$ref": "#/$defs/u32" }, { "type": "null" }] },
    "count_or_null": { "oneOf": [{ "$ref": "#/$defs/count" }, { "type": "null" }] },
    "text_or_null": { "type": ["string", "null"] },
    "kind": { "enum": ["rule", "policy", "hook", "kernel"] },
    "hook": {
      "enum": ["prerouting", "input", "forward", "output", "postrouting", "ingress", "egress", null]
    },
    "capability": {
      "type": "object",
      "required": ["exactness", "reason"],
      "properties": {
        "exactness": { "enum": ["exact", "inferred", "unavailable"] },
        "reason": { "description": "why it is not exact", "$ref": "#/$defs/text_or_null" }
      }
    },
    "netns": {
      "type": "object",
      "required": ["inode", "name"],
      "properties": {
        "inode": { "$ref": "#/$defs/u32" },
        "name": { "description": "as in `ip netns`; else of the oldest process in it: \"nginx[1234]\"", "$ref": "#/$defs/text_or_null" }
      }
    },
    "quoted_or_null": {
      "oneOf": [
        { "type": "null" },
        {
          "type": "object",
          "required": ["proto", "src", "sport", "dst", "dport"],
          "properties": {
            "proto": { "description": "a name, or the protocol number as a string", "type": "string" },
            "src": { "type": "string" },
            "sport": { "$ref": "#/$defs/u16_or_null" },
            "dst": { "type": "string" },
            "dport": { "$ref": "#/$defs/u16_or_null" }
          }
        }
      ]
    },
    "packet": {
      "type": "object",
      "required": [
        "family", "proto", "src", "sport", "dst", "dport", "length", "ttl", "tcp_flags", "icmp_type", "icmp_code",
        "mark", "direction", "in_dev", "out_dev"
      ],
      "properties": {
        "family": { "enum": ["ipv4", "ipv6", "other"] },
        "proto": { "description": "a name, or the protocol number as a string", "type": "string" },
        "src": { "description": "an IP address, for ARP that of the sender; else empty", "type": "string" },
        "sport": { "$ref": "#/$defs/u16_or_null" },
        "dst": { "description": "as src; for ARP the target", "type": "string" },
        "dport": { "$ref": "#/$defs/u16_or_null" },
        "length": { "description": "bytes of the IP packet, header included", "$ref": "#/$defs/u32" },
        "ttl": { "$ref": "#/$defs/u8" },
        "tcp_flags": { "$ref": "#/$defs/u8_or_null" },
        "icmp_type": { "$ref": "#/$defs/u8_or_null" },
        "icmp_code": { "$ref": "#/$defs/u8_or_null" },
        "mark": { "$ref": "#/$defs/u32" },
        "direction": { "description": "toward the traced range, or coming from it", "enum": ["to", "from"] },
        "in_dev": { "$ref": "#/$defs/text_or_null" },
        "out_dev": { "$ref": "#/$defs/text_or_null" },
        "ct_state": {
          "description": "what conntrack says; null when it has not seen the packet",
          "enum": ["established", "related", "new", "established-reply", "related-reply", "untracked", null]
        },
        "no_ports": {
          "description": "why there are none although its protocol may have some: a later fragment, or not readable",
          "enum": ["fragment", "unread", null]
        },
        "quoted": { "description": "of an ICMP error: the packet that it is about", "$ref": "#/$defs/quoted_or_null" }
      }
    },
    "site": {
      "type": "object",
      "required": ["kind", "reason", "reason_code", "location", "hook"],
      "properties": {
        "kind": { "$ref": "#/$defs/kind" },
        "reason": { "description": "the running kernel's name, without SKB_DROP_REASON_", "type": "string" },
        "reason_code": { "$ref": "#/$defs/u32" },
        "location": { "type": "string" },
        "hook": { "$ref": "#/$defs/hook" },
        "unknown": { "description": "why no rule is named", "$ref": "#/$defs/text_or_null" },
        "hook_function": { "$ref": "#/$defs/hook_function_or_null" },
        "queue": { "$ref": "#/$defs/queue_or_null" }
      }
    },
    "hook_function_or_null": {
      "description": "the function at that hook which dropped the packet, where it has no rules",
      "oneOf": [
        { "type": "null" },
        {
          "type": "object",
          "required": ["name", "module", "bpf_program"],
          "properties": {
            "name": { "type": "string" },
            "module": { "description": "null: built in", "$ref": "#/$defs/text_or_null" },
            "bpf_program": {
              "oneOf": [
                { "type": "null" },
                {
                  "type": "object",
                  "required": ["id", "name"],
                  "properties": { "id": { "$ref": "#/$defs/u32" }, "name": { "type": "string" } }
                }
              ]
            }
          }
        }
      ]
    },
    "queue_or_null": {
      "description": "what became of a packet that a rule had handed to a program in userspace (NFQUEUE)",
      "oneOf": [
        { "type": "null" },
        {
          "type": "object",
          "required": ["number", "fate", "process"],
          "properties": {
            "number": { "$ref": "#/$defs/u16_or_null" },
            "fate": { "enum": ["nobody", "full", "refused", "unknown", "verdict", "closed"] },
            "process": { "description": "that gave the verdict", "$ref": "#/$defs/process_or_null" }
          }
        }
      ]
    },
    "step": {
      "type": "object",
      "required": ["chain", "number", "handle"],
      "properties": {
        "chain": { "type": "string" },
        "number": { "description": "position in the chain, from 1", "$ref": "#/$defs/u32_or_null" },
        "handle": { "$ref": "#/$defs/count_or_null" }
      }
    },
    "rule_or_null": {
      "oneOf": [
        { "type": "null" },
        {
          "type": "object",
          "required": [
            "backend", "family", "table", "chain", "number", "handle", "text", "path", "verdict", "confidence", "stale",
            "owner"
          ],
          "properties": {
            "backend": {
              "description": "iptables-legacy: with family arp it is arptables-legacy, with bridge ebtables-legacy",
              "enum": ["iptables-legacy", "iptables-nft", "nftables"]
            },
            "family": { "enum": ["ip", "ip6", "inet", "arp", "bridge", "netdev"] },
            "table": { "type": "string" },
            "chain": { "type": "string" },
            "number": { "description": "position in the chain, from 1", "$ref": "#/$defs/u32_or_null" },
            "handle": { "$ref": "#/$defs/count_or_null" },
            "text": { "description": "as the user's own tool prints it", "$ref": "#/$defs/text_or_null" },
            "path": { "type": "array", "items": { "$ref": "#/$defs/step" } },
            "verdict": { "type": "string" },
            "confidence": { "enum": ["exact", "inferred"] },
            "evidence": {
              "description": "what it is inferred from; null where it is exact",
              "$ref": "#/$defs/text_or_null"
            },
            "stale": { "description": "the ruleset changed before its text was looked up", "type": "boolean" },
            "owner": { "$ref": "#/$defs/text_or_null" },
            "elements": {
              "description": "of a drop line: the elements of nftables' sets and verdict maps that the packet met in the rule. Deduced from the ruleset and the packet, not seen. Null: none, or not known",
              "oneOf": [
                { "type": "null" },
                {
                  "type": "array",
                  "items": {
                    "type": "object",
                    "required": ["set", "element"],
                    "properties": {
                      "set": { "description": "null: written in the rule", "$ref": "#/$defs/text_or_null" },
                      "element": {
                        "description": "as nft prints it, without counters and the time that is left",
                        "type": "string"
                      }
                    }
                  }
                }
              ]
            }
          }
        }
      ]
    },
    "process_or_null": {
      "oneOf": [
        { "type": "null" },
        {
          "type": "object",
          "required": ["pid", "comm"],
          "properties": {
            "pid": { "$ref": "#/$defs/u32" },
            "comm": { "type": "string" }
          }
        }
      ]
    },
    "changers": {
      "type": "array",
      "items": {
        "type": "object",
        "required": ["pid", "comm", "parent", "changes"],
        "properties": {
          "pid": { "$ref": "#/$defs/u32" },
          "comm": { "type": "string" },
          "parent": { "description": "the process that started it", "$ref": "#/$defs/process_or_null" },
          "changes": { "$ref": "#/$defs/count" }
        }
      }
    },
    "route_or_null": {
      "description": "how a packet to the far end leaves this machine, as the kernel said shortly after the drop",
      "oneOf": [
        { "type": "null" },
        {
          "type": "object",
          "required": ["type", "dev", "gateway", "table", "matched"],
          "properties": {
            "type": {
              "description": "none: no route leads there, or an ip rule of type unreachable says so",
              "enum": [
                "unicast", "local", "broadcast", "anycast", "multicast", "blackhole", "unreachable", "prohibit",
                "throw", "nat", "xresolve", "none"
              ]
            },
            "dev": { "$ref": "#/$defs/text_or_null" },
            "gateway": { "description": "an IP address; null: on the link itself", "$ref": "#/$defs/text_or_null" },
            "table": { "description": "the routing table: 254 is main, 255 local", "$ref": "#/$defs/u32_or_null" },
            "matched": { "description": "the entry of that table: a CIDR, or default", "$ref": "#/$defs/text_or_null" },
            "rule": { "description": "priority of the ip rule that leads to that table", "$ref": "#/$defs/u32_or_null" }
          }
        }
      ]
    },
    "evidence_or_null": {
      "description": "what this machine itself says, asked once for each cause, far end and flow; null: nothing was asked. Each part is null where it does not apply or could not be had",
      "oneOf": [
        { "type": "null" },
        {
          "type": "object",
          "required": ["route", "tailnet_peer", "socket", "sysctls"],
          "properties": {
            "route": { "$ref": "#/$defs/route_or_null" },
            "tailnet_peer": {
              "description": "the far end has a route of its own in table 52, Tailscale's",
              "type": ["boolean", "null"]
            },
            "socket": {
              "oneOf": [
                { "type": "null" },
                {
                  "type": "object",
                  "required": ["waits", "process"],
                  "properties": {
                    "waits": {
                      "description": "a socket of this machine would take the packet, by its addresses and ports",
                      "type": "boolean"
                    },
                    "process": { "description": "one that holds that socket", "$ref": "#/$defs/process_or_null" }
                  }
                }
              ]
            },
            "sysctls": {
              "description": "settings that explanations look at, by name, as far as they could be read",
              "type": "object",
              "additionalProperties": { "type": "string" }
            }
          }
        }
      ]
    },
    "explanation_or_null": {
      "oneOf": [
        { "type": "null" },
        {
          "type": "object",
          "required": ["id", "summary", "fixes", "reference"],
          "properties": {
            "id": { "type": "string" },
            "summary": { "type": "string" },
            "reference": { "$ref": "#/$defs/text_or_null" },
            "fixes": {
              "description": "best first",
              "type": "array",
              "items": {
                "type": "object",
                "required": ["do", "risk"],
                "properties": {
                  "do": { "type": "string" },
                  "risk": { "type": "string" }
                }
              }
            }
          }
        }
      ]
    },
    "flow": {
      "type": "object",
      "required": ["proto", "src", "sport", "dst", "dport", "packets"],
      "properties": {
        "proto": { "type": "string" },
        "src": { "type": "string" },
        "sport": { "$ref": "#/$defs/u16" },
        "dst": { "type": "string" },
        "dport": { "$ref": "#/$defs/u16" },
        "packets": { "$ref": "#/$defs/count" }
      }
    },
    "seen": {
      "type": "object",
      "required": ["packets", "by_dev", "first", "last"],
      "properties": {
        "packets": { "$ref": "#/$defs/count" },
        "by_dev": { "$ref": "#/$defs/counts" },
        "first": { "oneOf": [{ "$ref": "#/$defs/time" }, { "type": "null" }] },
        "last": { "oneOf": [{ "$ref": "#/$defs/time" }, { "type": "null" }] }
      }
    },
    "cause": {
      "type": "object",
      "required": ["drop", "rule", "netns", "packets", "bytes", "first", "last", "flows", "flows_other"],
      "properties": {
        "drop": {
          "type": "object",
          "required": ["kind", "reason", "hook"],
          "properties": {
            "kind": { "$ref": "#/$defs/kind" },
            "reason": { "type": "string" },
            "hook": { "$ref": "#/$defs/hook" },
            "hook_function": { "$ref": "#/$defs/hook_function_or_null" },
            "queue": { "$ref": "#/$defs/queue_or_null" }
          }
        },
        "rule": { "$ref": "#/$defs/rule_or_null" },
        "netns": { "$ref": "#/$defs/netns" },
        "packets": { "$ref": "#/$defs/count" },
        "bytes": { "$ref": "#/$defs/count" },
        "first": { "$ref": "#/$defs/time" },
        "last": { "$ref": "#/$defs/time" },
        "flows": { "description": "most packets first", "type": "array", "items": { "$ref": "#/$defs/flow" } },
        "flows_other": {
          "type": "object",
          "required": ["flows", "packets"],
          "properties": {
            "flows": { "$ref": "#/$defs/count" },
            "packets": { "$ref": "#/$defs/count" }
          }
        }
      }
    },
    "start": {
      "type": "object",
      "required": ["schema_version", "type", "time", "host", "version", "kernel", "filter", "capabilities"],
      "properties": {
        "schema_version": { "const": 1 },
        "type": { "const": "start" },
        "time": { "$ref": "#/$defs/time" },
        "host": { "type": "string" },
        "version": { "type": "string" },
        "kernel": { "type": "string" },
        "filter": { "type": "string" },
        "capabilities": {
          "type": "object",
          "required": ["iptables-legacy", "iptables-nft", "nftables"],
          "properties": {
            "iptables-legacy": { "$ref": "#/$defs/capability" },
            "iptables-nft": { "$ref": "#/$defs/capability" },
            "nftables": { "$ref": "#/$defs/capability" }
          }
        }
      }
    },
    "drop": {
      "type": "object",
      "required": [
        "schema_version", "type", "time", "host", "mono_ns", "cpu", "netns", "packet", "drop", "rule", "process",
        "evidence", "explanation"
      ],
      "properties": {
        "schema_version": { "const": 1 },
        "type": { "const": "drop" },
        "time": { "$ref": "#/$defs/time" },
        "host": { "type": "string" },
        "mono_ns": { "$ref": "#/$defs/count" },
        "cpu": { "$ref": "#/$defs/u32" },
        "netns": { "$ref": "#/$defs/netns" },
        "packet": { "$ref": "#/$defs/packet" },
        "drop": { "$ref": "#/$defs/site" },
        "rule": { "$ref": "#/$defs/rule_or_null" },
        "process": { "$ref": "#/$defs/process_or_null" },
        "rule_written": {
          "description": "the change that brought the rule, where it was seen; null: it was not, or there is no rule",
          "oneOf": [
            { "type": "null" },
            {
              "type": "object",
              "required": ["time", "by", "changers"],
              "properties": {
                "time": { "description": "of the last change of a burst", "$ref": "#/$defs/time" },
                "by": { "description": "null: one of several, see changers", "$ref": "#/$defs/process_or_null" },
                "changers": { "$ref": "#/$defs/changers" }
              }
            }
          ]
        },
        "evidence": { "$ref": "#/$defs/evidence_or_null" },
        "explanation": { "$ref": "#/$defs/explanation_or_null" }
      }
    },
    "lost": {
      "type": "object",
      "required": ["schema_version", "type", "time", "host", "count", "where", "since"],
      "properties": {
        "schema_version": { "const": 1 },
        "type": { "const": "lost" },
        "time": { "$ref": "#/$defs/time" },
        "host": { "type": "string" },
        "count": { "$ref": "#/$defs/count" },
        "where": { "type": "string" },
        "since": { "$ref": "#/$defs/time" }
      }
    },
    "changed_rules": {
      "description": "rules and policies that drop, at most 100; `path` is the rule alone",
      "type": "array",
      "items": {
        "type": "object",
        "$ref": "#/$defs/rule_or_null",
        "properties": { "was": { "description": "the number that it had", "$ref": "#/$defs/u32" } }
      }
    },
    "ruleset": {
      "type": "object",
      "required": [
        "schema_version", "type", "time", "host", "netns", "backend", "generation", "by", "changers", "other_changes",
        "drops", "unknown"
      ],
      "properties": {
        "schema_version": { "const": 1 },
        "type": { "const": "ruleset" },
        "time": { "description": "of the last change", "$ref": "#/$defs/time" },
        "host": { "type": "string" },
        "netns": { "$ref": "#/$defs/netns" },
        "backend": { "enum": ["iptables-legacy", "iptables-nft", "nftables"] },
        "generation": { "description": "of all rulesets of the kernel's backend on this machine", "$ref": "#/$defs/u32" },
        "by": { "description": "null: several may have changed it, see changers", "$ref": "#/$defs/process_or_null" },
        "changers": {
          "description": "who changed it since the line before, at most 8",
          "$ref": "#/$defs/changers"
        },
        "other_changes": {
          "description": "changes by others, or by whom is not known; they may have been of another ruleset",
          "$ref": "#/$defs/count"
        },
        "drops": {
          "oneOf": [
            { "type": "null" },
            {
              "type": "object",
              "required": ["added", "removed", "moved", "more"],
              "properties": {
                "added": { "$ref": "#/$defs/changed_rules" },
                "removed": { "$ref": "#/$defs/changed_rules" },
                "moved": { "$ref": "#/$defs/changed_rules" },
                "more": { "description": "beyond those in the lists", "$ref": "#/$defs/counts" }
              }
            }
          ]
        },
        "unknown": { "description": "why drops is null", "$ref": "#/$defs/text_or_null" }
      }
    },
    "seen_since": {
      "type": "object",
      "required": ["packets", "by_dev"],
      "properties": { "packets": { "$ref": "#/$defs/count" }, "by_dev": { "$ref": "#/$defs/counts" } }
    },
    "stopped": {
      "description": "a rule or a policy that dropped has dropped nothing since a change of the ruleset, though packets of the filter came",
      "type": "object",
      "required": [
        "schema_version", "type", "time", "host", "netns", "drop", "rule", "packets", "first", "last", "change", "seen"
      ],
      "properties": {
        "schema_version": { "const": 1 },
        "type": { "const": "stopped" },
        "time": { "description": "when it was known", "$ref": "#/$defs/time" },
        "host": { "type": "string" },
        "netns": { "$ref": "#/$defs/netns" },
        "drop": {
          "type": "object",
          "required": ["kind", "reason", "hook"],
          "properties": {
            "kind": { "enum": ["rule", "policy"] },
            "reason": { "type": "string" },
            "hook": { "$ref": "#/$defs/hook" }
          }
        },
        "rule": { "$ref": "#/$defs/rule_or_null" },
        "packets": { "description": "that it dropped before", "$ref": "#/$defs/count" },
        "first": { "$ref": "#/$defs/time" },
        "last": { "description": "the last drop: it stopped then", "$ref": "#/$defs/time" },
        "change": {
          "description": "the first change of rules that the packets may meet on their way to the rule, since the last drop",
          "type": "object",
          "required": ["time", "backend", "generation", "by", "chain", "changes", "confidence"],
          "properties": {
            "time": { "description": "as in its ruleset line", "$ref": "#/$defs/time" },
            "backend": { "enum": ["iptables-legacy", "iptables-nft", "nftables"] },
            "generation": { "$ref": "#/$defs/u32" },
            "by": { "description": "null: several may have changed it", "$ref": "#/$defs/process_or_null" },
            "chain": {
              "description": "base chain by which the packets meet what differs; null: that is not known",
              "oneOf": [
                { "type": "null" },
                {
                  "type": "object",
                  "required": ["family", "table", "chain"],
                  "properties": {
                    "family": { "enum": ["ip", "ip6", "inet", "arp", "bridge", "netdev"] },
                    "table": { "type": "string" },
                    "chain": { "type": "string" }
                  }
                }
              ]
            },
            "changes": { "description": "of such rules since the last drop", "$ref": "#/$defs/count" },
            "confidence": {
              "description": "that this change did it is inferred from the times",
              "enum": ["exact", "inferred"]
            }
          }
        },
        "seen": {
          "description": "packets of the filter since shortly after the change, dropped later or not",
          "type": "object",
          "required": ["since", "sent", "received"],
          "properties": {
            "since": { "$ref": "#/$defs/time" },
            "sent": { "$ref": "#/$defs/seen_since" },
            "received": { "$ref": "#/$defs/seen_since" }
          }
        }
      }
    },
    "check": {
      "description": "what tsdroptrace check has found out, before the last summary",
      "type": "object",
      "required": ["schema_version", "type", "time", "host", "target", "verdict", "text"],
      "properties": {
        "schema_version": { "const": 1 },
        "type": { "const": "check" },
        "time": { "$ref": "#/$defs/time" },
        "host": { "type": "string" },
        "target": { "type": "string" },
        "verdict": { "enum": ["reachable", "dropped_here", "lost_elsewhere"] },
        "text": { "description": "a sentence", "type": "string" }
      }
    },
    "summary": {
      "type": "object",
      "required": [
        "schema_version", "type", "time", "host", "final", "since", "until", "causes", "seen", "lost", "hidden"
      ],
      "properties": {
        "schema_version": { "const": 1 },
        "type": { "const": "summary" },
        "time": { "$ref": "#/$defs/time" },
        "host": { "type": "string" },
        "final": { "type": "boolean" },
        "since": { "$ref": "#/$defs/time" },
        "until": { "$ref": "#/$defs/time" },
        "causes": { "description": "most packets first", "type": "array", "items": { "$ref": "#/$defs/cause" } },
        "seen": {
          "description": "packets of the filter in this network namespace (or those of --netns), dropped later or not; null: they were not counted",
          "oneOf": [
            { "type": "null" },
            {
              "type": "object",
              "required": ["sent", "received"],
              "properties": {
                "sent": { "description": "toward the range, handed to the driver of a device", "$ref": "#/$defs/seen" },
                "received": { "description": "from the range, come in by a device", "$ref": "#/$defs/seen" }
              }
            }
          ]
        },
        "ways": {
          "description": "of the last summary, where nothing left for the filter's ranges, or left by a tunnel of a program: the route to one address of each (4 at most)",
          "type": "array",
          "items": {
            "type": "object",
            "required": ["range", "to", "route"],
            "properties": {
              "range": { "type": "string" },
              "to": { "type": "string" },
              "route": { "$ref": "#/$defs/route_or_null" }
            }
          }
        },
        "lost": { "$ref": "#/$defs/counts" },
        "hidden": { "$ref": "#/$defs/counts" }
      }
    }
  }
}
)json";
}

} // namespace tsdroptrace::output
