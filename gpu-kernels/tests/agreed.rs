//! What kernels and host agree on, in numbers.
//!
//! Here and not beside what they are about: the library is the kernels, which take long to compile, and a library with tests is compiled twice.
use epoxide_kernels::families::ALL;
use epoxide_kernels::placement::Placement;
use epoxide_kernels::scale::{Scale, Ue8m0};
use epoxide_kernels::shape::{Layout, MAX_ROW_SLOTS, Packing, ScaleLayout, Shape, WireFormat};
use epoxide_kernels::words::Number;

#[test]
fn ranges_partition_the_experts_and_differ_by_at_most_one() {
    for ranks in 1..=64 {
        for experts in [1, 2, 3, 7, 8, 63, 64, 65, 255, 256, 257, 2048] {
            let p = Placement::new(experts, ranks);
            let mut next = 0;
            for rank in 0..ranks {
                assert_eq!(p.first(rank), next);
                for e in next..next + p.count(rank) {
                    assert_eq!(p.owner(e), rank, "{p:?}");
                }
                next += p.count(rank);
                assert!(p.count(0) - p.count(rank) <= 1);
            }
            assert_eq!((next, p.first(ranks)), (experts, experts));
        }
    }
}

#[test]
fn a_contiguous_row_holds_its_parts_side_by_side() {
    let (ranks, max_tokens) = (8, 128);
    let rows = Shape::worst_tokens(ranks, max_tokens);
    let bf16 = Shape {
        ranks,
        experts: 256,
        top_k: 6,
        hidden: 7168,
        max_tokens,
        rows,
        blocks: 16,
        format: WireFormat::Bf16,
        layout: Layout::Compact,
        routing_slots: 1,
        row_slots: 1,
        returned_weights: false,
        scale_layout: ScaleLayout::RowMajor,
        fp8_combine: false,
        packing: Packing::None,
        expert_index: 0,
    };
    assert_eq!(bf16.contiguous(), ([0, 14336, 14336, 14368, 14400], 14416));
    let fp8 = Shape { format: WireFormat::Fp8, ..bf16 };
    // 56 scales.
    assert_eq!(fp8.contiguous(), ([0, 7168, 7392, 7424, 7456], 7472));
    for shape in [bf16, fp8] {
        assert!((0..16).contains(&(shape.contiguous().1 - shape.received_bytes())));
    }
}

/// For every BF16 number that is a largest magnitude: the smallest power of two with which it is not beyond the largest code.
#[test]
fn a_power_of_two_is_the_next_one() {
    let bf16s = (0..=u16::MAX >> 1).map(|bits| f32::from_bits(u32::from(bits) << 16));
    for amax in bf16s.filter(|x| (1e-4..f32::INFINITY).contains(x)).chain([1e-4]) {
        let (inverse, scale) = Ue8m0::<128>::new(amax);
        assert!(amax * inverse <= 448.0 && amax * inverse > 224.0, "{amax}: {inverse}");
        assert_eq!(scale.to_f32() * inverse, 1.0, "{amax}");
        assert_eq!(Ue8m0::<32>::new(amax).0, inverse);
    }
    for amax in [f32::INFINITY, f32::NAN] {
        let (inverse, scale) = Ue8m0::<128>::new(amax);
        assert!(inverse.is_nan() && scale == Ue8m0::NAN && scale.to_f32().is_nan());
    }
    assert_eq!([0, 1, 127, 254].map(|b| Ue8m0::<32>(b).to_f32()), [-127, -126, 0, 127].map(|e| 2f64.powi(e) as f32));
}

#[test]
fn a_number_says_its_slot_and_counts_on_in_it() {
    for row_slot in [0, 1, MAX_ROW_SLOTS - 1] {
        let before_the_first = Number { row_slot, count: 0 }.to_word();
        assert_eq!(Number::from_word(before_the_first + 7), Number { row_slot, count: 7 });
        assert!(before_the_first.is_multiple_of(2), "parities are those of the count");
    }
    assert_eq!(Number { row_slot: 0, count: 5 }.to_word(), 5);
}

#[test]
fn every_text_has_the_kernels_of_its_family() {
    for family in ALL {
        let has = |entry: &&str| family.ptx.contains(&format!(".visible .entry {entry}("));
        assert!(family.entries.iter().all(has), "{}", family.name);
        assert_eq!(family.ptx.matches(".entry ").count(), family.entries.len(), "{}", family.name);
    }
}

/// Entry words speak of what was before their launch, and have no fence; but where a kernel has written what they publish: no simulated run tells the two apart.
#[test]
fn entry_words_have_a_fence_where_the_kernel_has_written_what_they_publish() {
    let fenced = ALL.iter().filter(|family| family.ptx.contains("fence.acq_rel.sys")).map(|family| family.name);
    let writes = ALL.iter().map(|family| family.name).filter(|name| name.starts_with("combine_rank_major_packed"));
    assert_eq!(fenced.collect::<Vec<_>>(), writes.collect::<Vec<_>>());
}
