//! A state as bytes, and back.
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | `rwkvst01` |
//! | 32 | whose state: the prefix's id |
//! | 4, 8, 8 | the layout: layers, elements of a layer's recurrence and of its shift vectors |
//! | 4 × elements | the values, f32: layer by layer recurrence and shift; the lowest bytes of all first, the highest last |
//!
//! Integers are little-endian. Values lie byte by byte since only the highest ones, signs and exponents, can be
//! compressed. Nothing is rounded: what goes on from a state must be what would have come without a cache.

use super::key::PrefixId;
use crate::{State, StateLayout};

const MAGIC: [u8; 8] = *b"rwkvst01";
const HEADER: usize = 8 + 32 + 4 + 8 + 8;

/// Bytes of an encoded state.
pub(super) fn encoded_bytes(layout: StateLayout) -> u64 {
    HEADER as u64 + layout.bytes()
}

fn header(id: PrefixId, layout: StateLayout) -> Vec<u8> {
    let StateLayout { layers, wkv, shift } = layout;
    let mut header = Vec::with_capacity(HEADER);
    header.extend(MAGIC);
    header.extend(id.0);
    header.extend(u32::try_from(layers).unwrap_or(u32::MAX).to_le_bytes());
    header.extend((wkv as u64).to_le_bytes());
    header.extend((shift as u64).to_le_bytes());
    header
}

/// The bytes of a state of that layout.
pub(super) fn encode(id: PrefixId, layout: StateLayout, state: &State) -> Vec<u8> {
    let mut bytes = header(id, layout);
    let values = layout.layers * (layout.wkv + layout.shift);
    bytes.resize(HEADER + values * 4, 0);
    let (low, high) = bytes[HEADER..].split_at_mut(values * 2);
    let ((b0, b1), (b2, b3)) = (low.split_at_mut(values), high.split_at_mut(values));
    let mut from = 0;
    for part in state.wkv.iter().zip(&state.shift).flat_map(|(w, s)| [w, s]) {
        let to = from + part.len();
        let planes = b0[from..to]
            .iter_mut()
            .zip(&mut b1[from..to])
            .zip(&mut b2[from..to])
            .zip(&mut b3[from..to]);
        for ((((b0, b1), b2), b3), x) in planes.zip(part) {
            [*b0, *b1, *b2, *b3] = x.to_le_bytes();
        }
        from = to;
    }
    bytes
}

/// The state that `bytes` are, if they are this prefix's of this layout.
pub(super) fn decode(id: PrefixId, layout: StateLayout, bytes: &[u8]) -> Option<State> {
    let values = layout.layers * (layout.wkv + layout.shift);
    let (head, body) = bytes.split_at_checked(HEADER)?;
    if head != header(id, layout) || body.len() != values * 4 {
        return None;
    }
    let (low, high) = body.split_at(values * 2);
    let ((b0, b1), (b2, b3)) = (low.split_at(values), high.split_at(values));
    let mut from = 0;
    let mut take = |n: usize| -> Vec<f32> {
        let to = from + n;
        let planes = b0[from..to]
            .iter()
            .zip(&b1[from..to])
            .zip(&b2[from..to])
            .zip(&b3[from..to]);
        from = to;
        planes
            .map(|(((b0, b1), b2), b3)| f32::from_le_bytes([*b0, *b1, *b2, *b3]))
            .collect()
    };
    let mut state = State {
        wkv: Vec::with_capacity(layout.layers),
        shift: Vec::with_capacity(layout.layers),
    };
    for _ in 0..layout.layers {
        state.wkv.push(take(layout.wkv));
        state.shift.push(take(layout.shift));
    }
    Some(state)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use proptest::prelude::*;

    const ID: PrefixId = PrefixId([7; 32]);

    fn any_state() -> impl Strategy<Value = (StateLayout, State)> {
        (0usize..4, 0usize..9, 0usize..9).prop_flat_map(|(layers, wkv, shift)| {
            let floats = |n| prop::collection::vec(any::<u32>().prop_map(f32::from_bits), n);
            let wkvs = prop::collection::vec(floats(wkv), layers);
            let shifts = prop::collection::vec(floats(shift), layers);
            (wkvs, shifts).prop_map(move |(wkv_values, shift_values)| {
                let state = State {
                    wkv: wkv_values,
                    shift: shift_values,
                };
                (StateLayout { layers, wkv, shift }, state)
            })
        })
    }

    fn bits(state: &State) -> Vec<u32> {
        let all = state.wkv.iter().chain(&state.shift).flatten();
        all.map(|x| x.to_bits()).collect()
    }

    proptest! {
        /// Every bit comes back, those of what is no number too.
        #[test]
        fn round_trip((layout, state) in any_state()) {
            let bytes = encode(ID, layout, &state);
            prop_assert_eq!(bytes.len() as u64, encoded_bytes(layout));
            let back = decode(ID, layout, &bytes).unwrap();
            prop_assert!(back.check(layout).is_ok());
            prop_assert_eq!(bits(&back), bits(&state));
        }

        /// Another prefix's, another layout's, shortened or lengthened bytes are no state.
        #[test]
        fn what_is_refused((layout, state) in any_state(), at in any::<prop::sample::Index>(), by in 1u8..) {
            let bytes = encode(ID, layout, &state);
            prop_assert_eq!(decode(PrefixId([8; 32]), layout, &bytes), None);
            for other in [
                StateLayout { layers: layout.layers + 1, ..layout },
                StateLayout { wkv: layout.wkv + 1, ..layout },
                StateLayout { wkv: layout.shift, shift: layout.wkv + 1, ..layout },
            ] {
                prop_assert_eq!(decode(ID, other, &bytes), None);
            }
            prop_assert_eq!(decode(ID, layout, &bytes[..at.index(bytes.len())]), None);
            prop_assert_eq!(decode(ID, layout, &[&bytes[..], &[0]].concat()), None);
            let mut header = bytes.clone();
            header[at.index(HEADER)] ^= by;
            prop_assert_eq!(decode(ID, layout, &header), None);
        }

        #[test]
        fn any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let layout = StateLayout { layers: 1, wkv: 4, shift: 2 };
            prop_assert_eq!(decode(ID, layout, &bytes), None);
        }
    }
}
