// RWKV-7's time mix between its projections (Peng et al. 2025, "RWKV-7 Goose", section 4) of a head in a step in which every
// span is one token: the low-rank pairs' second matrices, decay, in-context rate, value residual, both keys, the recurrence,
// group norm, bonus and gate. See step/head.
//   S ← S diag(w) − (S κ) (κ ⊙ a)ᵀ + v kᵀ,   y = (norm(S r) + (Σ r ⊙ k ⊙ r_k) v) ⊙ g
// S r is not summed over the new state, but over the three terms that it is made of: so all sums over a row are over what
// is known before, and the threads of a row meet once.
//
// The second matrices' products are made here (step/lora), or for many spans before (step/ready).
//
// Its time is latency, so all loads stand at the beginning, what depends on nothing first: the weights, then what the
// parameters place, then the states, which the spans place. After it the threads of the workgroup meet three times (more
// often without subgroups): hidden vectors, channels, and the values that are normed.
//
// Whoever imports this has `emit(token, head, row, value)` for what comes out; and, where several workgroups have a head,
// says in `state_read`, `count_reader` and `keeps_state` which of them may write its state: one that knows that all others
// have read it.
#ifdef FORMAT_READY
#import step/ready
#else
#import formats/$FORMAT
#import step/lora
#endif
#import step/wkv7_inputs

alias Row = array<vec4<f32>, QUADS>;

fn read_state(slot: u32, head: u32, place: Place) -> Row {
    var s: Row;
    if place.row < HEAD_SIZE && (ONE_SLOT || in_page(params.page, slot)) {
        var index = 0u;
        if !ONE_SLOT {
            index = slot - params.page.first_slot;
        }
        let base = state_row(index, head, place.row);
        for (var j = 0u; j < QUADS; j++) {
            let quad = place.part + j * SHARE;
            if quad < HEAD_SIZE / 4u {
                s[j] = state[base + quad];
            }
        }
    }
    return s;
}

// The time mix of a head for the spans from `first` on. Called by the whole workgroup.
fn time_mix(thread: u32, head: u32, first: u32) {
    let place = place_of(thread);
    // Rows past the end repeat the last one.
    let live = place.row < HEAD_SIZE;
    let channel = head * HEAD_SIZE + min(place.row, HEAD_SIZE - 1u);

    var tokens: array<u32, SPANS>;
    var slots: array<u32, SPANS>;
    for (var n = 0u; n < SPANS; n++) {
        tokens[n] = token_of(first + n);
        slots[n] = spans[tokens[n]].slot;
    }
    var ahead: Ahead;
    load_ahead(0u, channel, place.part, &ahead);
    let decay_bias = vectors[channel];
    let rate_bias = vectors[WIDTH + channel];
    let k_k = vectors[2u * WIDTH + channel];
    let k_a = vectors[3u * WIDTH + channel];
    let r_k = vectors[4u * WIDTH + channel];
    let norm_weight = vectors[5u * WIDTH + channel];
    let norm_bias = vectors[6u * WIDTH + channel];
    var value_bias = 0.0;
    if HAS_FIRST {
        value_bias = vectors[7u * WIDTH + channel];
    }
    let brought = bring(0u, thread, params.hidden, tokens);
    var next_inputs = inputs_of(tokens[0], channel);
    var next_s = read_state(slots[0], head, place);
    stage(thread, brought);
    var ups = up_projections(channel, thread, &ahead, params.hidden, tokens);

    for (var n = 0u; n < SPANS; n++) {
        let inputs = next_inputs;
        var s = next_s;
        let slot = slots[n];
        // The next span's are on their way meanwhile.
        if n + 1u < SPANS {
            next_inputs = inputs_of(tokens[n + 1u], channel);
            next_s = read_state(slots[n + 1u], head, place);
        }
        if (!EXACT && first + n >= params.spans) || !in_page(params.page, slot) {
            continue;
        }
        let index = slot - params.page.first_slot;
        let up = ups[n];
        let decay = decay7(up.x + decay_bias);
        let rate = sigmoid(up.y + rate_bias);
        var value = inputs.v;
        if HAS_FIRST {
            value += (inputs.first - value) * sigmoid(up.w + value_bias);
        }
        if place.part == 0u {
            let removal = inputs.k * k_k;
            let key = inputs.k * (1.0 + (rate - 1.0) * k_a);
            let own = channel_place(place.row);
            channels[own] = select(vec4(0.0), vec4(inputs.r, decay, key, removal), live);
            more_channels[own] = select(vec2(0.0), vec2(removal * rate, inputs.r * key * r_k), live);
        }
        state_read();
        workgroupBarrier();
        count_reader(head, thread);
        // S κ, S diag(w) r, κ κ, (κ ⊙ a) r, k r, the bonus: κ is still to be divided by its length.
        var sum: vec4<f32>;
        var more: vec2<f32>;
        var decays: Row;
        var keys: Row;
        var rated: Row;
        for (var j = 0u; j < QUADS; j++) {
            let i = place.part + j * SHARE;
            let c = channel_quads(i);
            let m = more_quads(i);
            decays[j] = c[1];
            keys[j] = c[2];
            rated[j] = m[0];
            sum += vec4(dot(s[j], c[3]), dot(s[j] * c[1], c[0]), dot(c[3], c[3]), dot(m[0], c[0]));
            more += vec2(dot(c[2], c[0]), m[1].x + m[1].y + m[1].z + m[1].w);
        }
        sum = share_add(sum, thread);
        more = share_add2(more, thread);
        let scale = 1.0 / max(sqrt(sum.z), 1e-12);
        let removed = -sum.x * scale;
        // A row past the end is zero: no state, and no value.
        let row_value = select(0.0, value, live);
        let read = sum.y + removed * (sum.w * scale) + row_value * more.x;
        if place.part == 0u {
            head_values[place.row] = read;
        }
        workgroupBarrier();
        let keeps = keeps_state(head, thread);
        if live && keeps {
            let base = state_row(index, head, place.row);
            for (var j = 0u; j < QUADS; j++) {
                let quad = place.part + j * SHARE;
                if quad < HEAD_SIZE / 4u {
                    state[base + quad] = s[j] * decays[j] + removed * (rated[j] * scale) + row_value * keys[j];
                }
            }
        }
        let normed = head_norm(read, place, params.epsilon) * norm_weight + norm_bias;
        if live && place.part == 0u {
            emit(tokens[n], head, place.row, (normed + more.y * value) * up.z);
            if STORES_SHIFT {
                shift_state[(index * 2u + params.which) * WIDTH + channel] = inputs.shifted;
            }
        }
    }
}
