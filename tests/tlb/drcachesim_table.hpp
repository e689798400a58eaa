// SPDX-License-Identifier: Apache-2.0
//
// What another simulator counts: hits and misses of each TLB, as the TLB simulator of DynamoRIO's drcachesim
// reports them (11.91.20672, commit 05e316505b). Its classes were built unchanged and given these references
// one by one, as those of one thread. Replacement is LRU, set as an option since the default is LFU. A core
// has a first-level TLB for fetches, another for data, and a second level behind both; pages have 4 KiB.
//
// The references come from a formula, `Generator`, or from a recorded trace. Each page that a reference
// touches is a lookup of its own, the lower page first.
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace drcachesim {

inline constexpr std::uint64_t kReferences = 1'000'000;  ///< of each stream

enum class Kind : std::uint8_t { fetch, read, write };

struct Reference {
    Kind kind = Kind::fetch;
    unsigned size = 1;  ///< fetch: 1 to 16; read and write: 1, 2, 4, 8
    std::uint64_t address = 0;
};

enum class Stream : std::uint8_t {
    loops,    ///< code and data in loops, some just longer than a TLB has entries
    uniform,  ///< any page as likely as another
    skewed,   ///< the page of rank r about as often as 1/r, ranks scattered over the sets
    strided,  ///< three arrays, walked in steps of powers of two
    shifts,   ///< a working set that changes place and size
    shared,   ///< code and data on the same pages; every fourth reference near a page's end
    chase,    ///< around cycles of 1024, 256 and 2048 pages, in an order without neighbours
    mixed,    ///< short runs of each of the others
};
inline constexpr std::array<std::string_view, 8> kStreamNames{"loops",  "uniform", "skewed", "strided",
                                                              "shifts", "shared",  "chase",  "mixed"};

/// Everything lies in two regions of so many pages, of which a reference starts in any but the last.
inline constexpr std::uint64_t kRegionPages = 4097;
inline constexpr std::uint64_t kLowRegion = 0x1000'0000;
inline constexpr std::uint64_t kHighRegion = 0xffff'8880'1000'0000;

/// The references of a stream, one after the other.
class Generator {
public:
    explicit Generator(Stream stream) : stream_{stream}, random_{static_cast<std::uint64_t>(stream) + 1} {}

    [[nodiscard]] Reference next()
    {
        const Stream pattern = pattern_now();
        const std::uint64_t dice = random();
        const unsigned fetches = pattern == Stream::strided ? 1 : 4;  // of 8
        Reference reference;
        reference.kind = (dice & 7) < fetches ? Kind::fetch : (dice & 7) == 7 ? Kind::write : Kind::read;
        const bool fetch = reference.kind == Kind::fetch;
        reference.size =
            static_cast<unsigned>(fetch ? ((dice >> 8) & 15) + 1 : std::uint64_t{1} << ((dice >> 8) & 3));
        std::uint64_t offset = (dice >> 16) & 4095;
        const std::uint64_t near_end = pattern == Stream::shared ? 3 : 31;
        if (((dice >> 32) & near_end) == 0) offset = 4095 - ((dice >> 16) & 15);
        const Place place = place_of(pattern, fetch, dice >> 40);
        reference.address = (place.high ? kHighRegion : kLowRegion) + place.page * 4096 + offset;
        ++count_;
        return reference;
    }

private:
    struct Place {
        std::uint64_t page = 0;  ///< of the region, below 4096
        bool high = false;
    };

    /// splitmix64
    std::uint64_t random()
    {
        random_ += 0x9e37'79b9'7f4a'7c15;
        std::uint64_t z = random_;
        z = (z ^ (z >> 30)) * 0xbf58'476d'1ce4'e5b9;
        z = (z ^ (z >> 27)) * 0x94d0'49bb'1331'11eb;
        return z ^ (z >> 31);
    }

    Stream pattern_now()
    {
        if (stream_ != Stream::mixed) return stream_;
        if (count_ % 64 == 0) run_ = static_cast<Stream>(random() % 7);
        return run_;
    }

    Place place_of(Stream pattern, bool fetch, std::uint64_t bits)
    {
        switch (pattern) {
        case Stream::uniform: return {random() & (fetch ? 255 : 2047), false};
        case Stream::skewed: return skewed(fetch ? 9 : 12, !fetch);
        case Stream::strided: return fetch ? Place{bits & 3, false} : strided();
        case Stream::shifts: return shifts(fetch);
        case Stream::shared: return skewed(10, false);
        case Stream::chase: return chase(fetch);
        default: return loops(fetch);
        }
    }

    Place loops(bool fetch)
    {
        if (fetch) {
            // 16 fetches from a page; 20 pages three times over, then these and 12 more. Now and then all of
            // it moves by 64 pages.
            const std::uint64_t step = fetched_++ / 16;
            const std::uint64_t round = step / 92;
            return {512 + (step % 92 < 60 ? step % 92 % 20 : step % 92 - 60) + (round & 64), true};
        }
        constexpr std::array<std::uint64_t, 10> kLengths{15, 17, 24, 33, 64, 65, 300, 600, 1025, 1600};
        const std::uint64_t length = kLengths[used_ / 20'000 % kLengths.size()];
        return {used_++ / 2 % length, true};
    }

    /// An octave, all of them as likely, and a rank in it.
    Place skewed(unsigned octaves, bool high)
    {
        const std::uint64_t bits = random();
        const unsigned octave = static_cast<unsigned>((bits >> 32) % octaves);
        const std::uint64_t rank = (std::uint64_t{1} << octave) + (bits & ((std::uint64_t{1} << octave) - 1));
        return {(rank * 0x9e37'79b1) & 4095, high};
    }

    Place strided()
    {
        constexpr std::array<std::uint64_t, 10> kLengths{3, 4, 5, 6, 7, 8, 9, 12, 13, 33};
        constexpr std::array<unsigned, 3> kShifts{4, 6, 7};  // steps of 16, 64, 128 pages
        const std::uint64_t element = used_ / 3;
        const unsigned shift = kShifts[used_++ % 3];
        const std::uint64_t round = element / 2048;
        const std::uint64_t page = ((element % kLengths[round % kLengths.size()]) << shift) + round;
        return {page & 4095, false};
    }

    Place shifts(bool fetch)
    {
        if (count_ % 4096 == 0) {
            const std::uint64_t bits = random();
            base_ = bits & 4095;
            size_ = std::uint64_t{4} << ((bits >> 16) % 9);
            far_ = ((bits >> 32) & 1) != 0;
        }
        const std::uint64_t bits = random();
        if ((bits & 63) == 0) return {(bits >> 32) & 4095, !far_};
        const std::uint64_t size = fetch ? size_ / 4 : size_;
        return {(base_ + (bits >> 32) % size + (fetch ? 2048 : 0)) & 4095, far_};
    }

    Place chase(bool fetch)
    {
        if (count_ % 8192 == 0) cycle_ = random() & 3;
        std::uint64_t& at = fetch ? code_ : data_;
        at = (at * 5 + 3) & 4095;
        if (fetch) return {at & 63, true};
        constexpr std::array<std::uint64_t, 4> kCycle{1023, 255, 1023, 2047};
        return {at & kCycle[cycle_], cycle_ == 2};
    }

    Stream stream_;
    std::uint64_t random_;
    Stream run_ = Stream::loops;
    std::uint64_t count_ = 0;
    std::uint64_t fetched_ = 0;
    std::uint64_t used_ = 0;
    std::uint64_t base_ = 0;
    std::uint64_t size_ = 4;
    bool far_ = false;
    std::uint64_t cycle_ = 0;
    std::uint64_t code_ = 0;
    std::uint64_t data_ = 0;
};

struct Size {
    unsigned entries = 0;
    unsigned ways = 0;  ///< as many as entries: fully associative
};

struct Geometry {
    std::string_view name;
    Size l1i;
    Size l1d;
    Size l2;
};

/// The first is drcachesim's default. The number of sets must be a power of two there, that of ways need not.
inline constexpr std::array<Geometry, 10> kGeometries{{
    {"default", {32, 32}, {32, 32}, {1024, 4}},
    {"set-associative", {64, 4}, {64, 4}, {1536, 12}},
    {"wide code", {128, 8}, {64, 4}, {1536, 6}},
    {"small and fully associative", {16, 16}, {16, 16}, {512, 4}},
    {"large and fully associative", {64, 64}, {72, 72}, {2048, 16}},
    {"one way", {16, 1}, {32, 1}, {128, 1}},
    {"odd ways", {24, 6}, {12, 3}, {112, 7}},
    {"second level as large as the first", {64, 4}, {64, 4}, {64, 4}},
    {"second level smaller", {64, 8}, {128, 8}, {32, 32}},
    {"least", {1, 1}, {1, 1}, {2, 2}},
}};

struct Counts {
    std::uint64_t hits = 0;
    std::uint64_t misses = 0;

    friend bool operator==(const Counts&, const Counts&) = default;
};

struct Row {
    Stream stream;
    unsigned geometry;  ///< of kGeometries
    Counts l1i;
    Counts l1d;
    Counts l2;
};

inline constexpr std::array<Row, 80> kRows{{
    {Stream::loops, 0, {505'092, 2'534}, {343'188, 160'234}, {142'317, 20'451}},
    {Stream::loops, 1, {507'548, 78}, {421'681, 81'741}, {70'993, 10'826}},
    {Stream::loops, 2, {507'560, 66}, {421'681, 81'741}, {75'203, 6'604}},
    {Stream::loops, 3, {476'104, 31'522}, {283'169, 220'253}, {197'243, 54'532}},
    {Stream::loops, 4, {507'428, 198}, {423'286, 80'136}, {78'733, 1'601}},
    {Stream::loops, 5, {488'093, 19'533}, {371'333, 132'089}, {64'289, 87'333}},
    {Stream::loops, 6, {496'684, 10'942}, {259'059, 244'363}, {171'997, 83'308}},
    {Stream::loops, 7, {507'548, 78}, {421'681, 81'741}, {0, 81'819}},
    {Stream::loops, 8, {507'540, 86}, {423'286, 80'136}, {0, 80'222}},
    {Stream::loops, 9, {461'247, 46'379}, {250'149, 253'273}, {4'121, 295'531}},
    {Stream::uniform, 0, {63'458, 444'845}, {7'669, 495'287}, {678'230, 261'902}},
    {Stream::uniform, 1, {127'043, 381'260}, {15'623, 487'333}, {741'401, 127'192}},
    {Stream::uniform, 2, {254'285, 254'018}, {15'623, 487'333}, {613'608, 127'743}},
    {Stream::uniform, 3, {31'740, 476'563}, {3'872, 499'084}, {506'413, 469'234}},
    {Stream::uniform, 4, {127'068, 381'235}, {17'616, 485'340}, {864'514, 2'061}},
    {Stream::uniform, 5, {31'774, 476'529}, {7'745, 495'211}, {139'843, 831'897}},
    {Stream::uniform, 6, {47'636, 460'667}, {2'936, 500'020}, {96'124, 864'563}},
    {Stream::uniform, 7, {127'043, 381'260}, {15'623, 487'333}, {13'767, 854'826}},
    {Stream::uniform, 8, {126'865, 381'438}, {31'410, 471'546}, {6'613, 846'371}},
    {Stream::uniform, 9, {1'993, 506'310}, {222, 502'734}, {1'046, 1'007'998}},
    {Stream::skewed, 0, {196'585, 311'156}, {124'257, 379'142}, {478'520, 211'778}},
    {Stream::skewed, 1, {264'969, 242'772}, {171'053, 332'346}, {433'054, 142'064}},
    {Stream::skewed, 2, {338'256, 169'485}, {171'053, 332'346}, {358'945, 142'886}},
    {Stream::skewed, 3, {132'321, 375'420}, {80'727, 422'672}, {461'384, 336'708}},
    {Stream::skewed, 4, {265'520, 242'221}, {179'955, 323'444}, {466'476, 99'189}},
    {Stream::skewed, 5, {128'031, 379'710}, {117'319, 386'080}, {126'851, 638'939}},
    {Stream::skewed, 6, {168'452, 339'289}, {65'253, 438'146}, {165'989, 611'446}},
    {Stream::skewed, 7, {264'969, 242'772}, {171'053, 332'346}, {749, 574'369}},
    {Stream::skewed, 8, {265'032, 242'709}, {220'718, 282'681}, {2, 525'388}},
    {Stream::skewed, 9, {12'034, 495'707}, {6'819, 496'580}, {4'450, 987'837}},
    {Stream::strided, 0, {127'548, 5}, {807'195, 72'433}, {23'849, 48'589}},
    {Stream::strided, 1, {127'548, 5}, {137'240, 742'388}, {671'907, 70'486}},
    {Stream::strided, 2, {127'548, 5}, {137'240, 742'388}, {678'483, 63'910}},
    {Stream::strided, 3, {127'548, 5}, {571'756, 307'872}, {126'423, 181'454}},
    {Stream::strided, 4, {127'548, 5}, {857'205, 22'423}, {20'529, 1'899}},
    {Stream::strided, 5, {127'548, 5}, {101'586, 778'042}, {206'912, 571'135}},
    {Stream::strided, 6, {127'548, 5}, {136'824, 742'804}, {131'618, 611'191}},
    {Stream::strided, 7, {127'548, 5}, {137'240, 742'388}, {186, 742'207}},
    {Stream::strided, 8, {127'548, 5}, {297'492, 582'136}, {509'679, 72'462}},
    {Stream::strided, 9, {31'148, 96'405}, {90'075, 789'553}, {37'301, 848'657}},
    {Stream::shifts, 0, {363'827, 144'811}, {250'634, 251'939}, {312'518, 84'232}},
    {Stream::shifts, 1, {416'844, 91'794}, {302'876, 199'697}, {217'295, 74'196}},
    {Stream::shifts, 2, {457'821, 50'817}, {302'876, 199'697}, {176'541, 73'973}},
    {Stream::shifts, 3, {308'309, 200'329}, {198'695, 303'878}, {380'743, 123'464}},
    {Stream::shifts, 4, {416'027, 92'611}, {310'934, 191'639}, {216'072, 68'178}},
    {Stream::shifts, 5, {309'114, 199'524}, {251'373, 251'200}, {155'575, 295'149}},
    {Stream::shifts, 6, {337'896, 170'742}, {177'326, 325'247}, {184'898, 311'091}},
    {Stream::shifts, 7, {416'844, 91'794}, {302'876, 199'697}, {5'365, 286'126}},
    {Stream::shifts, 8, {416'551, 92'087}, {354'477, 148'096}, {132, 240'051}},
    {Stream::shifts, 9, {106'066, 402'572}, {26'851, 475'722}, {26'378, 851'916}},
    {Stream::shared, 0, {162'533, 397'843}, {165'025, 356'146}, {718'201, 35'788}},
    {Stream::shared, 1, {225'242, 335'134}, {225'002, 296'169}, {630'105, 1'198}},
    {Stream::shared, 2, {295'613, 264'763}, {225'002, 296'169}, {559'734, 1'198}},
    {Stream::shared, 3, {105'667, 454'709}, {109'464, 411'707}, {667'283, 199'133}},
    {Stream::shared, 4, {226'643, 333'733}, {235'864, 285'307}, {617'842, 1'198}},
    {Stream::shared, 5, {101'205, 459'171}, {157'951, 363'220}, {312'850, 509'541}},
    {Stream::shared, 6, {137'341, 423'035}, {88'981, 432'190}, {327'754, 527'471}},
    {Stream::shared, 7, {225'242, 335'134}, {225'002, 296'169}, {47'086, 584'217}},
    {Stream::shared, 8, {226'206, 334'170}, {289'367, 231'804}, {15'276, 550'698}},
    {Stream::shared, 9, {8'780, 551'596}, {9'382, 511'789}, {21'687, 1'041'698}},
    {Stream::chase, 0, {8'117, 500'558}, {297, 502'205}, {793'677, 209'086}},
    {Stream::chase, 1, {508'054, 621}, {582, 501'920}, {323'813, 178'728}},
    {Stream::chase, 2, {508'610, 65}, {582, 501'920}, {324'246, 177'739}},
    {Stream::chase, 3, {4'131, 504'544}, {147, 502'355}, {647'649, 359'250}},
    {Stream::chase, 4, {501'379, 7'296}, {669, 501'833}, {433'881, 75'248}},
    {Stream::chase, 5, {4'136, 504'539}, {297, 502'205}, {267'258, 739'486}},
    {Stream::chase, 6, {6'126, 502'549}, {104, 502'398}, {153'630, 851'317}},
    {Stream::chase, 7, {508'054, 621}, {582, 501'920}, {8, 502'533}},
    {Stream::chase, 8, {507'602, 1'073}, {1'189, 501'313}, {14, 502'372}},
    {Stream::chase, 9, {0, 508'675}, {0, 502'502}, {463, 1'010'714}},
    {Stream::mixed, 0, {162'569, 297'255}, {176'341, 384'655}, {401'925, 279'985}},
    {Stream::mixed, 1, {185'289, 274'535}, {116'635, 444'361}, {517'485, 201'411}},
    {Stream::mixed, 2, {229'067, 230'757}, {116'635, 444'361}, {471'565, 203'553}},
    {Stream::mixed, 3, {147'891, 311'933}, {149'250, 411'746}, {297'818, 425'861}},
    {Stream::mixed, 4, {183'204, 276'620}, {195'246, 365'750}, {489'927, 152'443}},
    {Stream::mixed, 5, {143'556, 316'268}, {97'764, 463'232}, {109'296, 670'204}},
    {Stream::mixed, 6, {156'207, 303'617}, {89'046, 471'950}, {95'733, 679'834}},
    {Stream::mixed, 7, {185'289, 274'535}, {116'635, 444'361}, {18'320, 700'576}},
    {Stream::mixed, 8, {184'614, 275'210}, {157'903, 403'093}, {57'432, 620'871}},
    {Stream::mixed, 9, {79'938, 379'886}, {52'908, 508'088}, {12'974, 875'000}},
}};

/// 100'000 fetches, reads and writes of a recorded trace, with all pages taken as 4 KiB and whatever else is
/// in the trace passed over. Nothing that flushes stands between them. In the first trace none of them
/// faults, and all find A set, and D where they write; in the others a few fault.
struct Recorded {
    std::string_view trace;
    std::uint64_t before = 0;  ///< how many such records of the trace come before
};
inline constexpr std::uint64_t kRecordedReferences = 100'000;
inline constexpr std::array<Recorded, 3> kRecorded{{
    {"linux-6.1-686-2level.jsonl.zst", 0},
    {"linux-6.1-686pae-pae.jsonl.zst", 21'260},
    {"linux-6.1-amd64-4level.jsonl.zst", 22'616},
}};

struct RecordedRow {
    unsigned recorded;  ///< of kRecorded
    unsigned geometry;  ///< of kGeometries
    Counts l1i;
    Counts l1d;
    Counts l2;
};

inline constexpr std::array<RecordedRow, 30> kRecordedRows{{
    {0, 0, {32'344, 153}, {67'417, 86}, {52, 187}},
    {0, 1, {32'376, 121}, {67'426, 77}, {11, 187}},
    {0, 2, {32'387, 110}, {67'426, 77}, {0, 187}},
    {0, 3, {32'275, 222}, {67'322, 181}, {216, 187}},
    {0, 4, {32'384, 113}, {67'426, 77}, {3, 187}},
    {0, 5, {31'817, 680}, {66'875, 628}, {606, 702}},
    {0, 6, {32'315, 182}, {67'082, 421}, {412, 191}},
    {0, 7, {32'376, 121}, {67'426, 77}, {2, 196}},
    {0, 8, {32'385, 112}, {67'426, 77}, {0, 189}},
    {0, 9, {18'024, 14'473}, {52'300, 15'203}, {4'002, 25'674}},
    {1, 0, {30'410, 1'072}, {67'839, 679}, {1'278, 473}},
    {1, 1, {30'761, 721}, {68'152, 366}, {623, 464}},
    {1, 2, {31'076, 406}, {68'152, 366}, {308, 464}},
    {1, 3, {30'097, 1'385}, {67'224, 1'294}, {2'172, 507}},
    {1, 4, {30'868, 614}, {68'258, 260}, {410, 464}},
    {1, 5, {29'484, 1'998}, {65'499, 3'019}, {3'044, 1'973}},
    {1, 6, {30'264, 1'218}, {66'051, 2'467}, {2'561, 1'124}},
    {1, 7, {30'761, 721}, {68'152, 366}, {62, 1'025}},
    {1, 8, {30'849, 633}, {68'321, 197}, {6, 824}},
    {1, 9, {25'541, 5'941}, {48'767, 19'751}, {5'538, 20'154}},
    {2, 0, {37'870, 837}, {60'681, 612}, {1'068, 381}},
    {2, 1, {38'225, 482}, {60'968, 325}, {426, 381}},
    {2, 2, {38'406, 301}, {60'968, 325}, {245, 381}},
    {2, 3, {37'639, 1'068}, {60'094, 1'199}, {1'868, 399}},
    {2, 4, {38'273, 434}, {61'051, 242}, {295, 381}},
    {2, 5, {34'820, 3'887}, {56'803, 4'490}, {6'495, 1'882}},
    {2, 6, {36'645, 2'062}, {57'029, 4'264}, {5'485, 841}},
    {2, 7, {38'225, 482}, {60'968, 325}, {43, 764}},
    {2, 8, {38'267, 440}, {61'110, 183}, {4, 619}},
    {2, 9, {27'523, 11'184}, {34'437, 26'856}, {3'066, 34'974}},
}};

}  // namespace drcachesim
