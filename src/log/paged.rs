//! The sealed files of one kind: which segments have one, and the few that are open.
//!
//! A file is written aside, synced, renamed into place and never changed (M5). At open only its header page is looked
//! at; it is opened when somebody reads, at most [`MAX_OPEN`] at a time, the one not used for longest gives way. Each
//! page is verified when it is read. A file that turns out damaged, or gone, is **missing** from then on: readers are
//! told so at once, and whoever rebuilds it puts another into its place. Damage never concerns the log.
//!
//! Locks: `segments` guards the list, `open` the open files. Neither is held during I/O, nor both at once.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use crate::file::FileError;
use crate::file::Operation;
use crate::file::disk::{Access, Disk, DiskFile, read_exact_at, write_all_at};
use crate::format::index;
use crate::format::names::{FileKind, temporary};
use crate::format::pages::{self, Header, Kind, PAGE_LEN, PageWriter};
use crate::message::PhysicalOffset;
use crate::sync::{Mutex, lock};

/// Descriptors held by one kind of file.
const MAX_OPEN: usize = 256;
/// Written at once while a file is made.
const WRITE_LEN: usize = 256 * 1024;

/// A sealed file could not be read. The log has lost nothing.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SealedError {
    /// The operating system refused. If it was a read, the file is missing from now on.
    #[error(transparent)]
    File(#[from] FileError),
    /// The file of the segment at `base` is not what was written, or gone. It is missing from now on.
    #[error("sealed file of the segment at {base} is damaged in page {page}")]
    Damaged {
        /// Of the segment.
        base: PhysicalOffset,
        /// In the file; 0 is the header, or the file as a whole.
        page: u64,
    },
}

/// Whether a segment's file can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileState {
    /// In place.
    Present,
    /// In place, and made when the segment was damaged: entries may be lacking.
    Lacking,
    /// Has to be rebuilt first.
    Missing,
}

/// A finished segment whose entries are in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct SealedSegment {
    /// Its first byte.
    pub(crate) base: PhysicalOffset,
    /// Behind its last byte.
    pub(crate) end: PhysicalOffset,
    /// Of its file.
    pub(crate) state: FileState,
    /// Which of the files that stood in this place one after the other.
    generation: u64,
}

/// A file that is open, with its header.
pub(crate) struct SealedFile {
    file: Arc<dyn DiskFile>,
    header: Header,
    salt: u32,
}

/// What a look at some pages came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scrubbed {
    /// Bytes read.
    pub(crate) bytes: u64,
    /// Where to go on, if there is more.
    pub(crate) next: Option<u64>,
}

/// What a whole look at the file of a segment came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FileCheck {
    /// All of it is as it should be.
    Sound,
    /// There is no file.
    Absent,
    /// A page does not verify; page 0 also if the file is of another segment, store, length or version.
    Damaged {
        /// In the file.
        page: u64,
    },
    /// All pages verify, and say something else than they should.
    Differs {
        /// The first byte of the stream that does; 0 also if the header does.
        at: u64,
    },
}

/// What stands in the place of a segment's file.
enum Look {
    File(SealedFile),
    Absent,
    /// Not the file of this segment, or of a version not known here.
    Unusable,
}

#[derive(Default)]
struct List {
    /// By base. Copied if a reader holds it while it changes.
    segments: Arc<Vec<SealedSegment>>,
    generation: u64,
}

#[derive(Default)]
struct OpenFiles {
    files: HashMap<(PhysicalOffset, u64), (Arc<SealedFile>, u64)>,
    uses: u64,
}

/// All sealed files of one kind.
pub(crate) struct SealedFiles {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    store_id: [u8; 16],
    kind: Kind,
    segments: Mutex<List>,
    open: Mutex<OpenFiles>,
}

impl SealedFiles {
    pub(crate) fn new(disk: Arc<dyn Disk>, dir: PathBuf, store_id: [u8; 16], kind: Kind) -> Self {
        let (segments, open) = (Mutex::default(), Mutex::default());
        Self { disk, dir, store_id, kind, segments, open }
    }

    pub(crate) const fn store_id(&self) -> [u8; 16] {
        self.store_id
    }

    /// The finished segments by base, as they stand now.
    pub(crate) fn segments(&self) -> Arc<Vec<SealedSegment>> {
        lock(&self.segments).segments.clone()
    }

    /// Takes the file of the segment from `base` to `end`, if its header is right. Its pages are verified when read.
    pub(crate) fn adopt(
        &self,
        base: PhysicalOffset,
        end: PhysicalOffset,
    ) -> Result<bool, FileError> {
        let file = match self.load(base, end) {
            Ok(file) => file,
            // What cannot be read now is made anew on other blocks.
            Err(FileError::Io { operation: Operation::Read, .. }) => None,
            Err(error) => return Err(error),
        };
        if let Some(file) = &file {
            self.set(base, end, state_of(&file.header));
        }
        Ok(file.is_some())
    }

    /// The file of the segment has to be rebuilt before it can be read.
    pub(crate) fn mark_missing(&self, base: PhysicalOffset, end: PhysicalOffset) {
        self.set(base, end, FileState::Missing);
    }

    /// The file of the segment turned out not to be what it should: it is missing from now on. `false`: the segment was
    /// deleted, nothing is made again.
    pub(crate) fn found_wrong(&self, base: PhysicalOffset) -> bool {
        let segments = self.segments();
        let Some(segment) = segments.iter().find(|segment| segment.base == base) else {
            return false;
        };
        self.lose(segment)
    }

    /// Writes the file that `header` describes and puts it into place; readers find it when this returns. `fill` writes
    /// the stream.
    ///
    /// # Errors
    /// The old file, if there was one, is as it was; only if the directory could not be synced, either may be there.
    pub(crate) fn write(
        &self,
        header: &Header,
        fill: impl FnOnce(&mut StreamWriter) -> Result<(), FileError>,
    ) -> Result<(), FileError> {
        let path = self.path(header.base);
        let aside = self.dir.join(temporary(&self.name(header.base)));
        let written = self.write_aside(header, &aside, fill);
        let placed = written.and_then(|()| self.disk.rename(&aside, &path));
        if let Err(error) = placed {
            // The disk may be full; what is left behind helps nobody. The error that counts is the first one.
            let _ = self.disk.unlink(&aside);
            return Err(error);
        }
        self.disk.sync_dir(&self.dir)?;
        self.set(header.base, header.end, state_of(header));
        Ok(())
    }

    fn write_aside(
        &self,
        header: &Header,
        path: &std::path::Path,
        fill: impl FnOnce(&mut StreamWriter) -> Result<(), FileError>,
    ) -> Result<(), FileError> {
        let mut writer = StreamWriter {
            file: self.disk.create(path)?,
            pages: PageWriter::new(header.salt()),
            buffer: header.encode().to_vec(),
            position: 0,
            stream_len: 0,
        };
        fill(&mut writer)?;
        assert_eq!(writer.stream_len, header.stream_len, "the header describes what was written");
        let StreamWriter { file, pages, mut buffer, position, .. } = writer;
        pages.finish(&mut buffer);
        write_all_at(&*file, &buffer, position)?;
        file.sync()
    }

    /// Runs `read` over the segment's file, whose pages are kept in `pages`. What it finds damaged makes the file
    /// missing.
    pub(crate) fn read<T>(
        &self,
        segment: &SealedSegment,
        pages: &mut Pages,
        read: impl FnOnce(&mut Reader<'_>) -> Result<T, PageError>,
    ) -> Result<T, SealedError> {
        let done = match self.opened(segment)? {
            Some(file) => read(&mut Reader::new(&file, segment.generation, pages)),
            None => Err(PageError::Damaged { page: 0 }),
        };
        self.judged(segment, done)
    }

    /// Verifies pages of the segment's file as the disk has them, from page `from` on and at most `max` of them, beside
    /// the open files and the page cache. What is damaged makes the file missing; a missing one is not looked at.
    pub(crate) fn scrub(
        &self,
        base: PhysicalOffset,
        from: u64,
        max: u64,
    ) -> Result<Scrubbed, SealedError> {
        let segments = self.segments();
        let present = |segment: &&SealedSegment| segment.state != FileState::Missing;
        let Some(segment) = segments.iter().find(|segment| segment.base == base).filter(present)
        else {
            return Ok(Scrubbed { bytes: 0, next: None });
        };
        let done = match self.load(segment.base, segment.end)? {
            Some(file) => file.scrub(from, max),
            None => Err(PageError::Damaged { page: 0 }),
        };
        self.judged(segment, done)
    }

    /// Draws the conclusion from what was found in a file: if it is damaged it is missing from now on.
    fn judged<T>(
        &self,
        segment: &SealedSegment,
        done: Result<T, PageError>,
    ) -> Result<T, SealedError> {
        match done {
            Ok(value) => Ok(value),
            Err(PageError::Damaged { page }) => {
                self.lose(segment);
                Err(SealedError::Damaged { base: segment.base, page })
            }
            Err(PageError::File(error)) => {
                // What cannot be read now is made anew on other blocks.
                if matches!(error, FileError::Io { operation: Operation::Read, .. }) {
                    self.lose(segment);
                }
                Err(SealedError::File(error))
            }
        }
    }

    fn opened(&self, segment: &SealedSegment) -> Result<Option<Arc<SealedFile>>, FileError> {
        let name = (segment.base, segment.generation);
        {
            let mut open = lock(&self.open);
            open.uses += 1;
            let now = open.uses;
            if let Some((file, used)) = open.files.get_mut(&name) {
                *used = now;
                return Ok(Some(file.clone()));
            }
        }
        let Some(file) = self.load(segment.base, segment.end)? else { return Ok(None) };
        let file = Arc::new(file);
        let mut open = lock(&self.open);
        if open.files.len() >= MAX_OPEN {
            let oldest = open.files.iter().min_by_key(|(_, (_, used))| *used);
            let oldest = oldest.map(|(name, _)| *name);
            oldest.map(|name| open.files.remove(&name));
        }
        let now = open.uses;
        open.files.insert(name, (file.clone(), now));
        Ok(Some(file))
    }

    /// Opens the file. `None`: there is none, or it is not the one of this segment, or of a version not known here.
    fn load(
        &self,
        base: PhysicalOffset,
        end: PhysicalOffset,
    ) -> Result<Option<SealedFile>, FileError> {
        Ok(match self.look(base, end)? {
            Look::File(file) => Some(file),
            Look::Absent | Look::Unusable => None,
        })
    }

    fn look(&self, base: PhysicalOffset, end: PhysicalOffset) -> Result<Look, FileError> {
        let file = match self.disk.open(&self.path(base), Access::Read) {
            Err(FileError::NotFound { .. }) => return Ok(Look::Absent),
            opened => opened?,
        };
        let mut page = [0; PAGE_LEN];
        match read_exact_at(&*file, &mut page, 0) {
            Err(FileError::TooShort { .. }) => return Ok(Look::Unusable),
            read => read?,
        }
        let Ok(header) = Header::decode(self.kind, &page) else { return Ok(Look::Unusable) };
        let ours = header.store_id == self.store_id && header.base == base && header.end == end;
        if !ours || file.len()? != header.file_len() {
            return Ok(Look::Unusable);
        }
        Ok(Look::File(SealedFile { file, header, salt: header.salt() }))
    }

    /// Reads the whole file of a segment as the disk has it, listed or not, and lets `compare` tell what should stand
    /// in it. Changes nothing, also not what is known of the file. With the result come the bytes read.
    pub(crate) fn check(
        &self,
        base: PhysicalOffset,
        end: PhysicalOffset,
        compare: impl FnOnce(&mut Comparison<'_>) -> Result<(), PageError>,
    ) -> Result<(FileCheck, u64), FileError> {
        let file = match self.look(base, end)? {
            Look::Absent => return Ok((FileCheck::Absent, 0)),
            Look::Unusable => return Ok((FileCheck::Damaged { page: 0 }, 0)),
            Look::File(file) => file,
        };
        let pages = file.header.file_len() / PAGE_LEN as u64;
        file.forget(0..pages);
        let mut kept = Pages::default();
        let reader = Reader::new(&file, 0, &mut kept);
        let mut comparison = Comparison { reader, at: 0, differs: None };
        let done = compare(&mut comparison).and_then(|()| comparison.finish(pages));
        file.forget(0..pages);
        let check = match done {
            Ok(None) => FileCheck::Sound,
            Ok(Some(at)) => FileCheck::Differs { at },
            Err(PageError::Damaged { page }) => FileCheck::Damaged { page },
            Err(PageError::File(error)) => return Err(error),
        };
        Ok((check, pages * PAGE_LEN as u64))
    }

    /// Runs `read` over the file of a segment, listed or not. `None`: there is none that can be read.
    pub(crate) fn read_beside<T>(
        &self,
        base: PhysicalOffset,
        end: PhysicalOffset,
        read: impl FnOnce(&mut Reader<'_>) -> Result<T, PageError>,
    ) -> Result<Option<T>, FileError> {
        let Some(file) = self.load(base, end)? else { return Ok(None) };
        match read(&mut Reader::new(&file, 0, &mut Pages::default())) {
            Ok(value) => Ok(Some(value)),
            Err(PageError::Damaged { .. }) => Ok(None),
            Err(PageError::File(error)) => Err(error),
        }
    }

    fn set(&self, base: PhysicalOffset, end: PhysicalOffset, state: FileState) {
        let mut list = lock(&self.segments);
        list.generation += 1;
        let segment = SealedSegment { base, end, state, generation: list.generation };
        let segments = Arc::make_mut(&mut list.segments);
        let index = segments.partition_point(|known| known.base < base);
        match segments.get_mut(index) {
            Some(known) if known.base == base => *known = segment,
            _ => segments.insert(index, segment),
        }
        drop(list);
        // An older file of that name may still be open.
        let mut open = lock(&self.open);
        open.files.retain(|(known, _), _| *known != base);
    }

    /// Forgets the segment at `base` and removes its file. The name is gone for good once the directory is synced.
    pub(crate) fn delete(&self, base: PhysicalOffset) -> Result<(), FileError> {
        let mut list = lock(&self.segments);
        Arc::make_mut(&mut list.segments).retain(|known| known.base != base);
        drop(list);
        lock(&self.open).files.retain(|(known, _), _| *known != base);
        match self.disk.unlink(&self.path(base)) {
            Err(FileError::NotFound { .. }) => Ok(()),
            unlinked => unlinked,
        }
    }

    /// Makes the file missing, unless another has taken its place meanwhile. `false`: the segment was deleted.
    fn lose(&self, segment: &SealedSegment) -> bool {
        let mut list = lock(&self.segments);
        let index = list.segments.partition_point(|known| known.base < segment.base);
        let is_listed = list.segments.get(index).is_some_and(|known| known.base == segment.base);
        if list.segments.get(index) == Some(segment)
            && let Some(known) = Arc::make_mut(&mut list.segments).get_mut(index)
        {
            known.state = FileState::Missing;
        }
        drop(list);
        lock(&self.open).files.remove(&(segment.base, segment.generation));
        is_listed
    }

    #[cfg(test)]
    pub(crate) fn open_files(&self) -> usize {
        lock(&self.open).files.len()
    }

    fn name(&self, base: PhysicalOffset) -> String {
        match self.kind {
            Kind::ConsumeQueue => FileKind::ConsumeQueue.name(base),
            Kind::Index => FileKind::Index.name(base),
        }
    }

    fn path(&self, base: PhysicalOffset) -> PathBuf {
        self.dir.join(self.name(base))
    }
}

/// Whether a file that is in place says that it lacks entries. A queue reveals by its offsets what it lacks.
fn state_of(header: &Header) -> FileState {
    match (header.kind, index::Sections::of(header)) {
        (Kind::Index, Ok(sections)) if sections.is_lacking => FileState::Lacking,
        _ => FileState::Present,
    }
}

impl SealedFile {
    fn scrub(&self, from: u64, max: u64) -> Result<Scrubbed, PageError> {
        let pages = self.header.file_len() / PAGE_LEN as u64;
        if from == 0 {
            self.forget(0..pages);
        }
        let end = from.saturating_add(max).min(pages);
        let mut kept = Pages::default();
        let mut reader = Reader::new(self, 0, &mut kept);
        // Page 0 is the header, which was verified when the file was opened.
        for page in from.max(1)..end {
            reader.content(page)?;
        }
        self.forget(from..end);
        let bytes = end.saturating_sub(from) * PAGE_LEN as u64;
        Ok(Scrubbed { bytes, next: (end < pages).then_some(end) })
    }

    /// Drops pages from the cache: before, to read the disk; behind, to leave the cache to others.
    fn forget(&self, pages: Range<u64>) {
        let len = PAGE_LEN as u64;
        if let Err(error) = self.file.drop_cache(pages.start * len..pages.end * len) {
            tracing::debug!(%error, "cached pages stay");
        }
    }
}

/// A file beside what should stand in it.
pub(crate) struct Comparison<'a> {
    reader: Reader<'a>,
    /// In the stream: up to where it was compared.
    at: u64,
    differs: Option<u64>,
}

impl Comparison<'_> {
    /// The header that the file should have.
    pub(crate) fn header(&mut self, header: &Header) {
        if self.reader.header() != header {
            self.differs = Some(0);
        }
    }

    /// The next bytes that its stream should have.
    pub(crate) fn push(&mut self, mut bytes: &[u8]) -> Result<(), PageError> {
        while self.differs.is_none() && !bytes.is_empty() {
            if self.at >= self.reader.header().stream_len {
                self.differs = Some(self.at);
                break;
            }
            let (number, within) = pages::place(self.at);
            let found = self.reader.content(number)?.get(within..).unwrap_or_default();
            let len = found.len().min(bytes.len());
            let (now, later) = bytes.split_at_checked(len).unwrap_or((bytes, &[]));
            let same = now.iter().zip(found).take_while(|(a, b)| a == b).count();
            if same < len {
                self.differs = Some(self.at + same as u64);
            }
            self.at += len as u64;
            bytes = later;
        }
        Ok(())
    }

    /// Verifies the pages that nobody compared. The first difference, if there was one.
    fn finish(mut self, pages: u64) -> Result<Option<u64>, PageError> {
        for page in self.reader.number.max(1)..pages {
            self.reader.content(page)?;
        }
        Ok(self.differs)
    }
}

/// Takes the stream of a file in the making.
pub(crate) struct StreamWriter {
    file: Arc<dyn DiskFile>,
    pages: PageWriter,
    buffer: Vec<u8>,
    position: u64,
    stream_len: u64,
}

impl StreamWriter {
    pub(crate) fn push(&mut self, bytes: &[u8]) -> Result<(), FileError> {
        self.pages.push(bytes, &mut self.buffer);
        self.stream_len += bytes.len() as u64;
        if self.buffer.len() >= WRITE_LEN {
            write_all_at(&*self.file, &self.buffer, self.position)?;
            self.position += self.buffer.len() as u64;
            self.buffer.clear();
        }
        Ok(())
    }
}

/// Why a stream could not be read.
pub(crate) enum PageError {
    /// The operating system refused.
    File(FileError),
    /// The page is not what was written.
    Damaged { page: u64 },
}

/// Pages that a reader keeps, at most, and files of which he keeps a note: two pages of each segment over which queues
/// with few records in each are read, one after the other.
const KEPT: usize = 64;

/// The pages that somebody read last, verified: who looks for several things one after the other mostly looks at the
/// same. Their names are used once, as a file never changes in its place; what becomes of the disk below them is seen
/// by the scrub, not here.
#[derive(Default)]
pub(crate) struct Pages {
    pages: VecDeque<Page>,
    /// What readers noted of a file, for those who come next.
    notes: VecDeque<(FileName, u64)>,
    /// What was noted last, of whatever file.
    noted_last: Option<u64>,
}

/// Of a file: the segment's base, and which file of that name.
type FileName = (PhysicalOffset, u64);

struct Page {
    /// The page's number with it.
    name: (FileName, u64),
    bytes: Box<[u8; PAGE_LEN]>,
}

impl Pages {
    /// The page of that name; if it is not there, one that `read` fills.
    fn get<E>(
        &mut self,
        name: (FileName, u64),
        read: impl FnOnce(&mut [u8; PAGE_LEN]) -> Result<(), E>,
    ) -> Result<Option<&[u8; PAGE_LEN]>, E> {
        // Who reads on reads the page that came last.
        if let Some(index) = self.pages.iter().rposition(|page| page.name == name) {
            return Ok(self.pages.get(index).map(|page| &*page.bytes));
        }
        let oldest = if self.pages.len() < KEPT { None } else { self.pages.pop_front() };
        let mut bytes = oldest.map_or_else(|| Box::new([0; PAGE_LEN]), |page| page.bytes);
        read(&mut bytes)?;
        self.pages.push_back(Page { name, bytes });
        Ok(self.pages.back().map(|page| &*page.bytes))
    }

    fn noted(&self, file: FileName) -> Option<u64> {
        let mut notes = self.notes.iter();
        notes.find_map(|(of, note)| (*of == file).then_some(*note))
    }

    fn note(&mut self, file: FileName, note: u64) {
        self.noted_last = Some(note);
        if let Some((_, known)) = self.notes.iter_mut().find(|(of, _)| *of == file) {
            *known = note;
            return;
        }
        if self.notes.len() >= KEPT {
            self.notes.pop_front();
        }
        self.notes.push_back((file, note));
    }
}

/// Reads the stream of a file.
pub(crate) struct Reader<'a> {
    file: &'a SealedFile,
    generation: u64,
    pages: &'a mut Pages,
    /// The page that was read last; 0 for none, since the stream begins at 1.
    number: u64,
}

impl<'a> Reader<'a> {
    fn new(file: &'a SealedFile, generation: u64, pages: &'a mut Pages) -> Self {
        Self { file, generation, pages, number: 0 }
    }

    pub(crate) const fn header(&self) -> &Header {
        &self.file.header
    }

    /// What was noted of this file, as long as the pages are kept.
    pub(crate) fn noted(&self) -> Option<u64> {
        self.pages.noted(self.name())
    }

    /// What was noted last, of this file or of another one.
    pub(crate) const fn noted_last(&self) -> Option<u64> {
        self.pages.noted_last
    }

    /// Notes a number for the next reader of this file.
    pub(crate) fn note(&mut self, number: u64) {
        self.pages.note(self.name(), number);
    }

    const fn name(&self) -> FileName {
        (self.file.header.base, self.generation)
    }

    /// Fills `out` from byte `at` of the stream on.
    pub(crate) fn read(&mut self, mut at: u64, mut out: &mut [u8]) -> Result<(), PageError> {
        while !out.is_empty() {
            let (number, within) = pages::place(at);
            let content = self.content(number)?.get(within..).unwrap_or_default();
            let len = content.len().min(out.len());
            let (now, later) = out.split_at_mut(len);
            now.copy_from_slice(content.get(..len).unwrap_or_default());
            out = later;
            at += len as u64;
        }
        Ok(())
    }

    /// Reads a row of `N` bytes.
    pub(crate) fn row<const N: usize>(&mut self, at: u64) -> Result<[u8; N], PageError> {
        let mut row = [0; N];
        self.read(at, &mut row)?;
        Ok(row)
    }

    fn content(&mut self, number: u64) -> Result<&[u8], PageError> {
        let damaged = || PageError::Damaged { page: number };
        let file = self.file;
        let page = self.pages.get((self.name(), number), |page| {
            let position = number.saturating_mul(PAGE_LEN as u64);
            match read_exact_at(&*file.file, page, position) {
                Err(FileError::TooShort { .. }) => return Err(damaged()),
                read => read.map_err(PageError::File)?,
            }
            pages::verify(page, number, file.salt).map(drop).map_err(|_| damaged())
        })?;
        self.number = number;
        page.and_then(|page| page.get(..pages::CONTENT_LEN)).ok_or_else(damaged)
    }
}
