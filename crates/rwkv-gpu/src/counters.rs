//! Counting what is looked up and what is made.

use crate::{Gpu, pipeline_cache::PipelineCache};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// How often a cache had what was asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CacheCounts {
    /// Requests that found it.
    pub hits: u64,
    /// Requests that made it.
    pub misses: u64,
}

impl CacheCounts {
    /// Hits among all requests, from 0 to 1; none where there was no request.
    pub fn rate(self) -> Option<f64> {
        let requests = self.hits + self.misses;
        (requests > 0).then(|| self.hits as f64 / requests as f64)
    }

    /// What was counted after `earlier`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Self {
        Self {
            hits: self.hits.saturating_sub(earlier.hits),
            misses: self.misses.saturating_sub(earlier.misses),
        }
    }
}

/// Counts for one cache, from any thread.
#[derive(Debug, Default)]
pub struct CacheCounter {
    hits: AtomicU64,
    misses: AtomicU64,
}

impl CacheCounter {
    /// Counts a request that found what it asked for.
    pub fn hit(&self) {
        self.hits.fetch_add(1, Relaxed);
    }

    /// Counts a request that has to make it.
    pub fn miss(&self) {
        self.misses.fetch_add(1, Relaxed);
    }

    /// The counts so far.
    pub fn counts(&self) -> CacheCounts {
        CacheCounts {
            hits: self.hits.load(Relaxed),
            misses: self.misses.load(Relaxed),
        }
    }
}

/// What an opened GPU has made so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GpuCounts {
    /// Lookups of compiled pipelines: a miss compiles one.
    pub pipelines: CacheCounts,
    /// Those misses whose pipeline a run before has kept, so that the driver need not compile it anew.
    pub pipelines_kept: u64,
    /// Bytes of the driver's that runs before have kept.
    pub pipeline_cache_bytes: u64,
    /// Buffers made by [`Gpu::buffer`], for whatever use.
    pub buffers: u64,
    /// [Staging](crate::Staging) memory that was made.
    pub stagings: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) pipelines: CacheCounter,
    pipelines_kept: AtomicU64,
    buffers: AtomicU64,
    stagings: AtomicU64,
}

impl Counters {
    pub(crate) fn buffer_made(&self) {
        self.buffers.fetch_add(1, Relaxed);
    }

    pub(crate) fn staging_made(&self) {
        self.stagings.fetch_add(1, Relaxed);
    }

    pub(crate) fn pipeline_kept(&self) {
        self.pipelines_kept.fetch_add(1, Relaxed);
    }
}

impl Gpu {
    /// What was looked up and made since it was opened.
    pub fn counts(&self) -> GpuCounts {
        let counters = self.counters();
        GpuCounts {
            pipelines: counters.pipelines.counts(),
            pipelines_kept: counters.pipelines_kept.load(Relaxed),
            pipeline_cache_bytes: self.pipeline_cache().map_or(0, PipelineCache::bytes_read),
            buffers: counters.buffers.load(Relaxed),
            stagings: counters.stagings.load(Relaxed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates() {
        #[track_caller]
        fn check(hits: u64, misses: u64, want: Option<f64>) {
            assert_eq!(CacheCounts { hits, misses }.rate(), want);
        }
        check(0, 0, None);
        check(0, 3, Some(0.0));
        check(3, 1, Some(0.75));
    }
}
