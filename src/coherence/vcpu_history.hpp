// SPDX-License-Identifier: Apache-2.0
//
// When a vCPU could cache what: which root it had, under which PCID and in which paging mode, and which
// invalidations it has made since. Times only; the tables' content is the journal's.
#pragma once

#include <array>
#include <compare>
#include <cstdint>
#include <list>
#include <map>
#include <string_view>
#include <utility>
#include <vector>

#include <boost/unordered/unordered_flat_map.hpp>

#include <mmusim/words/address.hpp>
#include <mmusim/words/paging_mode.hpp>

#include "coherence/time.hpp"

namespace mmusim::coherence {

/// Where walks begin.
struct Root {
    Paging paging = Paging::off;
    Gfn frame;
    std::array<std::uint64_t, 4> pdptes{};  ///< PAE; then the frame is 0

    friend auto operator<=>(const Root&, const Root&) = default;
};

/// How entries are read, from a moment on: the index of the rules in a list that the oracle has.
struct Format {
    Time start = 0;
    Paging paging = Paging::off;
    std::uint32_t rules = 0;
};

/// A required invalidation.
struct Flush {
    Time time = 0;  ///< 0: there was none, and nothing was cached before the start
    std::string_view name;
    std::uint64_t pcid = 0;  ///< of one page with global translations: the PCID that was current
    bool page = false;
};

/// What has been cached under one PCID, or may have been.
class AddressSpace {
public:
    struct RootUse {
        Root root;
        Timeline times;
    };

    AddressSpace() = default;
    AddressSpace(AddressSpace&&) = default;
    AddressSpace& operator=(AddressSpace&&) = default;

    void open(const Root& root, Time now);
    void close(Time now);
    void flush(Time now) { flushes_.push_back(now); }
    void forget(Time time);

    /// When the PCID was the current one, with paging on.
    [[nodiscard]] const Timeline& current() const { return current_; }
    /// When CR3 had which root meanwhile. The root used last comes first.
    [[nodiscard]] const std::list<RootUse>& roots() const { return roots_; }
    /// The times between two flushes of all paging-structure-cache entries of the PCID, around `time`.
    [[nodiscard]] Interval era(Time time) const;

    Flush last_flush;  ///< of the PCID alone

private:
    Timeline current_;
    std::list<RootUse> roots_;
    std::map<Root, std::list<RootUse>::iterator> by_root_;
    std::vector<Time> flushes_;
};

class VcpuHistory {
public:
    VcpuHistory() { formats_.push_back({}); }

    /// `format.start` is not looked at.
    void context(Time now, const Root& root, Format format, std::uint64_t pcid, bool globals);
    void invalidated_page(Time now, std::uint64_t pcid, LinearAddress address, bool with_globals,
                          std::string_view name);
    void invalidated_pcid(Time now, std::uint64_t pcid, std::string_view name);
    void invalidated_all(Time now, bool with_globals, std::string_view name);

    [[nodiscard]] std::uint64_t pcid() const { return pcid_; }
    [[nodiscard]] bool globals() const { return globals_; }
    [[nodiscard]] const std::map<std::uint64_t, AddressSpace>& spaces() const { return spaces_; }
    [[nodiscard]] const std::vector<Format>& formats() const { return formats_; }

    /// The last invalidation that covers a page of 2^shift bytes around the address: what is not global of
    /// the PCID; what is global.
    [[nodiscard]] Flush last_flush(std::uint64_t pcid, LinearAddress address, unsigned shift) const;
    [[nodiscard]] Flush last_global_flush(LinearAddress address, unsigned shift) const;
    /// The last one that covers all of the PCID.
    [[nodiscard]] const Flush& last_flush(std::uint64_t pcid) const;
    /// The last one after which nothing at all was cached.
    [[nodiscard]] Time empty_since() const { return all_with_globals_.time; }
    /// From when on translations may be cached that are global; kForever if there is none.
    [[nodiscard]] Time globals_since() const { return globals_ ? empty_since() : kForever; }

    /// Forgets what concerns nothing that may be cached. Reports of violations then know less.
    void sweep();
    /// Entries of the lists that grow.
    [[nodiscard]] std::size_t remembered() const { return pages_.size() + loads_; }

private:
    enum class Scope : std::uint8_t { pcid, global };
    [[nodiscard]] static std::uint64_t page_key(Scope scope, std::uint64_t pcid, LinearAddress address,
                                                unsigned shift);
    [[nodiscard]] Flush last_page_flush(Scope scope, std::uint64_t pcid, LinearAddress address,
                                        unsigned shift) const;

    Root root_;
    std::uint64_t pcid_ = 0;
    bool globals_ = false;
    std::vector<Format> formats_;                   ///< in order of time; the first begins at 0
    std::map<std::uint64_t, AddressSpace> spaces_;  ///< by PCID
    Flush all_;
    Flush all_with_globals_;
    boost::unordered_flat_map<std::uint64_t, Flush> pages_;
    std::size_t loads_ = 0;  ///< of roots, and flushes of PCIDs, since the last sweep
};

}  // namespace mmusim::coherence
