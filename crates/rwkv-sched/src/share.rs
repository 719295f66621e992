//! Several devices for one model: which layers or which sequences each of them has.

use crate::{
    Device, Error, Executor, LoadOptions, LoadProgress, Model, Placement, ReplicatedExecutor,
    Result, gpu::check_memory, load, load_placed,
};
use std::ops::Range;

/// What several devices share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Share {
    /// The layers: each has some, and all sequences go through all devices.
    Layers,
    /// The sequences: each has the whole model, and some sequences.
    Sequences,
}

/// Whether what `model` has in these layers is not known to need more memory than there is.
///
/// # Errors
/// A tensor that cannot be described, or a GPU's failure.
fn fits(
    model: &Model,
    layers: Range<usize>,
    device: &Device,
    options: &LoadOptions,
) -> Result<bool> {
    let Device::Gpu(gpu) = device else {
        return Ok(true);
    };
    match check_memory(&model.part(layers), gpu, options) {
        Ok(_) => Ok(true),
        Err(Error::DoesNotFit(_)) => Ok(false),
        Err(error) => Err(error),
    }
}

/// As many layers as fit a device that is the `index`th of `count`, where every smaller number does too.
fn most(
    model: &Model,
    (index, count): (usize, usize),
    device: &Device,
    options: &LoadOptions,
) -> Result<usize> {
    let layers = model.config().layers;
    // Which ones matters little, but for what comes before the first and after the last.
    let some = |number: usize| match index {
        0 => 0..number,
        last if last + 1 == count => layers - number..layers,
        _ => 1..(1 + number).min(layers),
    };
    let (mut low, mut high) = (0, layers + 1);
    while high - low > 1 {
        let middle = low + (high - low) / 2;
        if fits(model, some(middle), device, options)? {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(low)
}

/// What each may have at most, and whether it is a GPU: the processor, which has room for all, has what the GPUs leave.
fn gpus_first(layers: usize, room: &[(usize, bool)]) -> Vec<usize> {
    let on_gpus: usize = room
        .iter()
        .filter(|(_, gpu)| *gpu)
        .map(|(room, _)| *room)
        .sum();
    let left = layers.saturating_sub(on_gpus);
    let room = room
        .iter()
        .map(|(room, gpu)| if *gpu { *room } else { left });
    room.collect()
}

/// `layers` shared out by what each may have at most; all of them to the last where that is too few.
fn by_room(layers: usize, room: &[usize]) -> Vec<usize> {
    let all = room.iter().sum::<usize>().max(1);
    let share = |most: &usize| (layers * most / all).min(*most);
    let mut counts: Vec<usize> = room.iter().map(share).collect();
    let mut left = layers.saturating_sub(counts.iter().sum());
    for (count, most) in counts.iter_mut().zip(room) {
        let more = left.min(most.saturating_sub(*count));
        *count += more;
        left -= more;
    }
    if let Some(last) = counts.last_mut() {
        *last += left;
    }
    counts
}

impl Placement {
    /// About as many layers on each of `devices`, in this order; those beyond the number of layers have none.
    ///
    /// # Errors
    /// [`Error::Placement`] for no devices or no layers.
    pub fn evenly(layers: usize, devices: &[Device]) -> Result<Self> {
        let count = devices.len().min(layers).max(1);
        let start = |number| number * layers / count;
        let ranges = (0..count).map(|number| start(number)..start(number + 1));
        Self::new(layers, ranges.zip(devices.iter().cloned()))
    }

    /// The same where each device has memory for its layers, as far as that is known; else as many on each as it has
    /// memory for, compared with the others.
    ///
    /// # Errors
    /// Those of [`evenly`](Self::evenly), a tensor that cannot be described, or a GPU's failure. Where all together have too
    /// little memory, loading says so.
    pub fn fitting(model: &Model, devices: &[Device], options: &LoadOptions) -> Result<Self> {
        let layers = model.config().layers;
        let evenly = Self::evenly(layers, devices)?;
        let mut all_fit = true;
        for (range, device) in evenly.stages() {
            all_fit &= fits(model, range.clone(), device, options)?;
        }
        if all_fit {
            return Ok(evenly);
        }
        let count = devices.len();
        let room = devices.iter().enumerate();
        let room = room
            .map(|(index, device)| {
                let most = most(model, (index, count), device, options)?;
                Ok((most, matches!(device, Device::Gpu(_))))
            })
            .collect::<Result<Vec<_>>>()?;
        let room = gpus_first(layers, &room);
        let mut next = 0;
        let stages = by_room(layers, &room).into_iter().zip(devices);
        let stages = stages.map(|(count, device)| {
            next += count;
            (next - count..next, device.clone())
        });
        Self::new(layers, stages.filter(|(range, _)| !range.is_empty()))
    }
}

/// An executor of `model` on all of `devices`, which share what `share` says. Without it they share the sequences, where there
/// are at least as many as devices, all of them are GPUs and the model fits on each, as far as that is known, and else the layers.
///
/// # Errors
/// Those of [`load`] and [`load_placed`], and [`Error::Placement`] for no devices.
pub fn load_shared(
    model: &Model,
    devices: &[Device],
    share: Option<Share>,
    options: &LoadOptions,
    progress: &mut dyn FnMut(LoadProgress),
) -> Result<Box<dyn Executor>> {
    if let [device] = devices {
        return load(model, device, options, progress);
    }
    let layers = model.config().layers;
    let share = match share {
        Some(share) => share,
        None if options.slots < devices.len() => Share::Layers,
        None => {
            let each = LoadOptions {
                slots: options.slots.div_ceil(devices.len().max(1)),
                ..options.clone()
            };
            let mut all_fit = true;
            for device in devices {
                // A processor would keep the others waiting.
                let fast = matches!(device, Device::Gpu(_));
                all_fit &= fast && fits(model, 0..layers, device, &each)?;
            }
            if all_fit {
                Share::Sequences
            } else {
                Share::Layers
            }
        }
    };
    match share {
        Share::Layers => {
            let placement = Placement::fitting(model, devices, options)?;
            load_placed(model, &placement, options, progress)
        }
        Share::Sequences => {
            let whole = |device: &Device| Placement::new(layers, [(0..layers, device.clone())]);
            let placements = devices.iter().map(whole).collect::<Result<Vec<_>>>()?;
            let executor = ReplicatedExecutor::load(model, &placements, options, progress)?;
            Ok(Box::new(executor))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn evenly() {
        #[track_caller]
        fn check(layers: usize, devices: usize, want: &[usize]) {
            let devices = vec![Device::Cpu; devices];
            let placement = Placement::evenly(layers, &devices).ok();
            let sizes = placement.map(|p| p.stages().iter().map(|(r, _)| r.len()).collect());
            assert_eq!(sizes, (!want.is_empty()).then(|| want.to_vec()));
        }
        check(32, 2, &[16, 16]);
        check(7, 3, &[2, 2, 3]);
        check(2, 3, &[1, 1]);
        check(2, 0, &[]);
        check(0, 2, &[]);
    }

    #[test]
    fn the_processor_has_what_is_left() {
        let (gpu, cpu) = (true, false);
        assert_eq!(gpus_first(32, &[(20, gpu), (32, cpu)]), [20, 12]);
        assert_eq!(
            gpus_first(32, &[(32, cpu), (20, gpu), (20, gpu)]),
            [0, 20, 20]
        );
        assert_eq!(gpus_first(32, &[(32, cpu), (32, cpu)]), [32, 32]);
        assert_eq!(
            by_room(32, &gpus_first(32, &[(20, gpu), (32, cpu)])),
            [20, 12]
        );
    }

    #[test]
    fn shared_out_by_room() {
        #[track_caller]
        fn check(layers: usize, room: &[usize], want: &[usize]) {
            assert_eq!(by_room(layers, room), want);
        }
        check(12, &[12, 12], &[6, 6]);
        check(12, &[12, 4], &[9, 3]);
        check(12, &[5, 8], &[5, 7]);
        check(12, &[0, 12], &[0, 12]);
        check(7, &[3, 3, 3], &[3, 2, 2]);
        // Too little: who loads them is told what there is.
        check(12, &[5, 5], &[5, 7]);
        check(12, &[0, 0], &[0, 12]);
    }
}
