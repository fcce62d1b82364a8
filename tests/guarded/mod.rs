//! Memory of which not a byte more can be read or written.

/// Bytes between two pages that must not be touched.
pub(crate) struct Guarded {
    start: *mut libc::c_void,
    page: usize,
    pages: usize,
}

impl Guarded {
    /// Room for `len` bytes.
    pub(crate) fn new(len: usize) -> Self {
        // SAFETY: a question.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).expect("a page has a size");
        let pages = len.div_ceil(page);
        // SAFETY: new pages, as many as asked for; the first and the last are taken away, which nothing refers to.
        let start = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let all = libc::mmap(std::ptr::null_mut(), (pages + 2) * page, libc::PROT_READ | libc::PROT_WRITE, flags, -1, 0);
            assert!(all != libc::MAP_FAILED, "pages");
            assert_eq!(libc::mprotect(all, page, libc::PROT_NONE), 0, "a page before");
            assert_eq!(libc::mprotect(all.byte_add((pages + 1) * page), page, libc::PROT_NONE), 0, "a page after");
            all
        };
        Self { start, page, pages }
    }

    /// `bytes` where the pages end, or where they begin.
    pub(crate) fn place(&mut self, bytes: &[u8], is_at_end: bool) -> &mut [u8] {
        assert!(bytes.len() <= self.pages * self.page, "they fit");
        let offset = self.page + if is_at_end { self.pages * self.page - bytes.len() } else { 0 };
        // SAFETY: between the two pages, which live as long as `self`.
        let room = unsafe { std::slice::from_raw_parts_mut(self.start.byte_add(offset).cast::<u8>(), bytes.len()) };
        room.copy_from_slice(bytes);
        room
    }
}

impl Drop for Guarded {
    fn drop(&mut self) {
        // SAFETY: the pages that `new` asked for.
        unsafe { libc::munmap(self.start, (self.pages + 2) * self.page) };
    }
}
