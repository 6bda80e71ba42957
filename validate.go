package litestream

import (
	"context"
	"errors"
	"fmt"
	"hash/crc64"
	"io"
	"log"
	"os"
	"path/filepath"
	"time"

	"example.com/litestream/internal/atomicfile"
)

// Validate proves the replica: it restores from it to a scratch file and
// compares that, page by page, with the live database at the same position.
// The database is pinned only while its own pages are read, and syncs go on
// during the restore. On a difference the error matches
// ErrChecksumMismatch, and the DB begins a new generation, whose snapshot
// replaces what was wrong.
//
// The scratch file stands in the meta directory and is as large as the
// database.
func (r *Replica) Validate(ctx context.Context) error {
	live, stored, err := r.prepareValidation(ctx)
	if err == nil {
		err = r.compare(ctx, live, stored)
		if errors.Is(err, ErrChecksumMismatch) {
			r.count.mismatches.Add(1)
			err = errors.Join(err, r.db.newGeneration(ctx, live.pos.Generation, "replica "+r.Name()+" failed validation"))
		}
	}
	if err != nil {
		return fmt.Errorf("validate replica %q: %w", r.Name(), err)
	}
	return nil
}

// prepareValidation brings the replica to a position and returns the sums of
// the database's pages at it, and what the replica lists.
func (r *Replica) prepareValidation(ctx context.Context) (live pageSums, stored generationInfos, err error) {
	u, err := r.acquire(ctx)
	if err != nil {
		return live, stored, err
	}
	defer func() {
		u.known = u.known && err == nil
		r.release(u)
	}()
	if err = r.sync(ctx, u); err != nil {
		return live, stored, err
	}
	if !u.known {
		return live, stored, ErrNoGeneration
	}
	if live, err = r.db.sumPages(ctx); err != nil {
		return live, stored, err
	}
	if live.pos.Generation != u.pos.Generation {
		return live, stored, fmt.Errorf("%w while the database was read", ErrGenerationChanged)
	}
	if err = r.uploadTo(ctx, u, live.pos); err != nil {
		return live, stored, err
	}
	r.publish(u.pos)
	// Retention that runs between the two listings of a generation looks like
	// a missing index, so one is believed only when it persists.
	for range restoreAttempts {
		if stored, err = listGeneration(ctx, r.client, live.pos.Generation); err != nil {
			return live, stored, err
		}
		if _, err := planGeneration(stored, time.Time{}); err == nil {
			break
		}
	}
	return live, stored, nil
}

// pageSums are the checksums of all pages of the database at a position.
type pageSums struct {
	pos      Pos
	pageSize int
	sums     []uint64 // of page 1 and so on
}

var crcTable = crc64.MakeTable(crc64.ECMA)

// sumPages reads the database at a position that was captured to the frame.
func (db *DB) sumPages(ctx context.Context) (p pageSums, err error) {
	pin, err := db.pinExact(ctx)
	if err != nil {
		return p, err
	}
	defer func() { err = errors.Join(err, pin.end()) }()
	p.pos = pin.pos
	return p, pin.conn.EachPage(ctx, func(pgno uint32, page []byte) error {
		if int(pgno) != len(p.sums)+1 {
			return fmt.Errorf("page %d follows page %d", pgno, len(p.sums))
		}
		p.pageSize = len(page)
		p.sums = append(p.sums, crc64.Checksum(page, crcTable))
		return nil
	})
}

// lockPage is the page that SQLite's locks stand on; it holds no data.
func (p *pageSums) lockPage() int {
	const pendingByte = 0x40000000
	return pendingByte/p.pageSize + 1
}

// compare restores what the replica stores and compares the pages.
func (r *Replica) compare(ctx context.Context, live pageSums, stored generationInfos) (err error) {
	plan, err := planGeneration(stored, time.Time{})
	if err != nil {
		return &ChecksumError{Path: r.Name(), Pos: live.pos, Err: err}
	}
	name := filepath.Join(string(r.db.meta), fmt.Sprintf("validate-%d%s", spoolSeq.Add(1), atomicfile.TempExt))
	opt := NewRestoreOptions()
	opt.Logger = log.New(io.Discard, "", 0)
	pos, err := newRestorer(r.client, name, opt).run(ctx, func() (*RestorePlan, error) { return plan, nil })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, r.db.fs.Remove(name)) }()
	if pos != live.pos {
		return &ChecksumError{Path: r.Name(), Pos: pos, Err: fmt.Errorf("replica ends there, and not at %s", live.pos)}
	}
	f, err := r.db.fs.OpenFile(name, os.O_RDONLY, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return live.compare(f, r.Name())
}

func (p *pageSums) compare(f io.Reader, name string) error {
	page := make([]byte, p.pageSize)
	for i, want := range p.sums {
		if _, err := io.ReadFull(f, page); err != nil {
			return &ChecksumError{Path: name, Pos: p.pos, Err: fmt.Errorf("page %d: %w", i+1, err)}
		}
		if i+1 != p.lockPage() && crc64.Checksum(page, crcTable) != want {
			return &ChecksumError{Path: name, Pos: p.pos, Err: fmt.Errorf("page %d differs from the database", i+1)}
		}
	}
	if n, err := f.Read(page[:1]); n > 0 || err != io.EOF {
		return &ChecksumError{Path: name, Pos: p.pos, Err: fmt.Errorf("it holds more than %d pages", len(p.sums))}
	}
	return nil
}
