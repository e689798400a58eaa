// SPDX-License-Identifier: Apache-2.0
#include <mmusim/shadow/shadow_events.hpp>

namespace mmusim {

std::string_view name_of(ShadowEventKind kind)
{
    constexpr std::array<std::string_view, kShadowEventKinds> kNames{
        "not_shadow",
        "fixup",
        "link",
        "mmio",
        "fast_propagate",
        "fast_mmio",
        "false_fast_path",
        "emulate",
        "emulate_unshadow_user",
        "domf_dying",
        "emulated_write",
        "emulate_further",
        "wrmap_bf",
        "prealloc_unpin",
        "prealloc_unhook",
        "resync_full",
        "resync_only",
        "unsync",
        "unsync_evict",
        "oos_fixup_add",
        "oos_fixup_evict",
        "early_unshadow",
        "unshadow",
        "promote",
        "demote",
        "update_cr3",
        "invlpg",
        "mem_access",
    };
    return kNames[static_cast<std::size_t>(kind)];
}

std::string_view name_of(PathFlag flag)
{
    constexpr std::array<std::string_view, kPathFlags> kNames{
        "set_ad",
        "l1_get_ref",
        "l1_put_ref",
        "l2_propagate",
        "set_changed",
        "set_flush",
        "set_error",
        "demote",
        "promote",
        "wrmap",
        "wrmap_guess_found",
        "wrmap_brute_force",
        "early_unshadow",
        "prealloc_unhook",
        "unsync",
        "oos_fixup_add",
        "oos_fixup_evict",
    };
    return kNames[static_cast<std::size_t>(flag)];
}

void ShadowEvents::begin(std::optional<unsigned> vcpu, Paging paging, std::optional<LinearAddress> address,
                         std::optional<std::uint32_t> error_code)
{
    if (observer_ == nullptr) [[likely]]
        return;
    complete();
    flags_ = 0;
    begun_ = {};
    begun_.vcpu = vcpu;
    begun_.address = address;
    begun_.error_code = error_code;
    if (vcpu) begun_.guest_levels = static_cast<unsigned>(mode_of(paging).levels);
}

void ShadowEvents::begin_emulated(unsigned vcpu, Paging paging, std::optional<LinearAddress> address)
{
    if (!held_) begin(vcpu, paging, address);
}

void ShadowEvents::send(ShadowEvent& event)
{
    event.flags = flags_;
    observer_->on_event(event);
}

void ShadowEvents::complete()
{
    if (!held_) return;
    send(*held_);
    held_.reset();
}

void ShadowEvents::stored(const ShadowEvent::Write& write)
{
    if (held_ && (held_at_ == write.at || held_at_ == write.second)) {
        held_->write = write;
        complete();
        return;
    }
    tell(ShadowEventKind::emulated_write, [&](ShadowEvent& event) {
        event.address.reset();
        event.error_code.reset();
        event.write = write;
    });
}

}  // namespace mmusim
