// SPDX-License-Identifier: GPL-2.0-only
#include "attach/type_excerpt.h"

#include <cstdint>
#include <vector>

#include <bpf/btf.h>
#include <sys/mman.h>
#include <unistd.h>

namespace tsdroptrace::attach {
namespace {

constexpr int deepest = 64; // structs in structs, typedefs of typedefs: the kernel has a dozen

} // namespace

TypeExcerpt::TypeExcerpt() : excerpt_(btf__new_empty()) {}

TypeExcerpt::~TypeExcerpt() {
    btf__free(excerpt_);
}

// The id of the copy; negative on failure. 0 is void, as in BTF.
int TypeExcerpt::copy(const Source& source, unsigned id, int depth) {
    if (!id)
        return 0;
    const btf* types = source.types;
    const btf_type* type = btf__type_by_id(types, id);
    if (!type || depth > deepest)
        return -1;
    const std::pair key{id < source.shared ? 0 : source.module, id};
    if (const auto known = copied_.find(key); known != copied_.end())
        return known->second;

    const char* name = btf__name_by_offset(types, type->name_off);
    const auto inner = [&](unsigned other) { return copy(source, other, depth + 1); };
    int added = -1;
    switch (btf_kind(type)) {
    case BTF_KIND_INT:
        added = btf__add_int(excerpt_, name, type->size, btf_int_encoding(type));
        break;
    case BTF_KIND_FLOAT:
        added = btf__add_float(excerpt_, name, type->size);
        break;
    case BTF_KIND_PTR:
        added = btf__add_ptr(excerpt_, 0);
        break;
    case BTF_KIND_FWD:
        added = btf__add_fwd(excerpt_, name, btf_kflag(type) ? BTF_FWD_UNION : BTF_FWD_STRUCT);
        break;
    case BTF_KIND_ARRAY: {
        const struct btf_array* array = btf_array(type);
        const int element = inner(array->type), index = inner(array->index_type);
        if (element >= 0 && index >= 0)
            added = btf__add_array(excerpt_, index, element, array->nelems);
        break;
    }
    case BTF_KIND_TYPEDEF:
    case BTF_KIND_CONST:
    case BTF_KIND_VOLATILE:
    case BTF_KIND_RESTRICT:
    case BTF_KIND_TYPE_TAG: {
        const int target = inner(type->type);
        if (target < 0)
            break;
        if (btf_is_typedef(type))
            added = btf__add_typedef(excerpt_, name, target);
        else
            added = target; // a qualifier: relocations look through it
        break;
    }
    case BTF_KIND_STRUCT:
    case BTF_KIND_UNION: {
        std::vector<int> members;
        for (int i = 0; i < btf_vlen(type); ++i)
            if (const int member = inner(btf_members(type)[i].type); member >= 0)
                members.push_back(member);
            else
                return -1;
        added = btf_is_struct(type) ? btf__add_struct(excerpt_, name, type->size)
                                    : btf__add_union(excerpt_, name, type->size);
        for (int i = 0; added >= 0 && i < btf_vlen(type); ++i) {
            const btf_member& member = btf_members(type)[i];
            const auto at = static_cast<unsigned>(i);
            if (btf__add_field(excerpt_, btf__name_by_offset(types, member.name_off), members[at],
                               btf_member_bit_offset(type, at), btf_member_bitfield_size(type, at)))
                return -1;
        }
        break;
    }
    case BTF_KIND_ENUM:
        added = btf__add_enum(excerpt_, name, type->size);
        for (int i = 0; added >= 0 && i < btf_vlen(type); ++i) {
            const struct btf_enum& value = btf_enum(type)[i];
            if (btf__add_enum_value(excerpt_, btf__name_by_offset(types, value.name_off), value.val))
                return -1;
        }
        break;
    case BTF_KIND_ENUM64:
        added = btf__add_enum64(excerpt_, name, type->size, btf_kflag(type));
        for (int i = 0; added >= 0 && i < btf_vlen(type); ++i) {
            const struct btf_enum64& value = btf_enum64(type)[i];
            if (btf__add_enum64_value(excerpt_, btf__name_by_offset(types, value.name_off), btf_enum64_value(&value)))
                return -1;
        }
        break;
    default: // a function's: only behind a pointer
        break;
    }
    if (added >= 0)
        copied_.emplace(key, added);
    return added;
}

bool TypeExcerpt::add(const btf* types, unsigned id, unsigned module, unsigned shared) {
    return excerpt_ && copy({types, module, shared}, id, 0) >= 0;
}

std::optional<Fd> TypeExcerpt::to_file() const {
    std::uint32_t size = 0;
    const void* data = excerpt_ ? btf__raw_data(excerpt_, &size) : nullptr;
    Fd file(memfd_create("tsdroptrace-types", MFD_CLOEXEC));
    if (!data || !file || write(file.get(), data, size) != static_cast<ssize_t>(size))
        return std::nullopt;
    return file;
}

} // namespace tsdroptrace::attach
