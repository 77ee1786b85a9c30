// SPDX-License-Identifier: GPL-2.0-only
// What `tsdroptrace check` says in the end. Pure: what the prober got and what the tracer counted in, a verdict out.
#pragma once

#include "check/probe.h"
#include "check/target.h"
#include "model.h"

namespace tsdroptrace::check {

// `summary`: of this run, with Summary::seen. Packets of others to the same target do not count as ours: the prober's
// ports tell them apart (of ICMP, nothing does).
CheckVerdict verdict(const Target& target, const Answer& answer, const Summary& summary);

} // namespace tsdroptrace::check
