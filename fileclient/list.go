package fileclient

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"sort"

	"example.com/litestream"
	"example.com/litestream/internal/durable"
)

// Generations lists the names of all generations in alphabetical order, which
// says nothing about their age.
func (c *FileReplicaClient) Generations(ctx context.Context) ([]string, error) {
	dir, err := c.GenerationsDir()
	if err != nil {
		return nil, fmt.Errorf("list generations: %w", err)
	}
	ents, err := c.readDir(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("list generations: %w", err)
	}
	var names []string
	for _, ent := range ents {
		if ent.IsDir() && litestream.IsGenerationName(ent.Name()) {
			names = append(names, ent.Name())
		}
	}
	return names, nil
}

// Snapshots iterates over a generation's snapshots in the order of their
// indexes, as they were when it was called. CreatedAt is the file's
// modification time.
func (c *FileReplicaClient) Snapshots(ctx context.Context, generation string) (litestream.SnapshotIterator, error) {
	dir, err := c.SnapshotsDir(generation)
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	ents, err := c.readDir(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	files, err := selectFiles(ents, parseSnapshotName)
	if err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	files = sortFiles(files)
	if err := c.settle(ctx, dir, files); err != nil {
		return nil, fmt.Errorf("list snapshots: %w", err)
	}
	infos := make([]litestream.SnapshotInfo, len(files))
	for i, f := range files {
		infos[i] = litestream.SnapshotInfo{
			Generation: generation, Index: f.index, Size: f.info.Size(), CreatedAt: f.info.ModTime().UTC(),
		}
	}
	return litestream.NewSnapshotInfoSliceIterator(infos), nil
}

// WALSegments iterates over a generation's segments in the order of their
// positions, as they were when it was called. CreatedAt is the file's
// modification time.
func (c *FileReplicaClient) WALSegments(ctx context.Context, generation string) (litestream.WALSegmentIterator, error) {
	dir, err := c.WALDir(generation)
	if err != nil {
		return nil, fmt.Errorf("list wal segments: %w", err)
	}
	files, err := c.walFiles(ctx, dir)
	if err != nil {
		return nil, fmt.Errorf("list wal segments: %w", err)
	}
	files = sortFiles(files)
	if n := len(files); n > 0 { // only one of the newest index can have been written last
		if err := c.settle(ctx, filepath.Join(dir, litestream.FormatIndex(files[n-1].index)), files); err != nil {
			return nil, fmt.Errorf("list wal segments: %w", err)
		}
	}
	infos := make([]litestream.WALSegmentInfo, len(files))
	for i, f := range files {
		infos[i] = litestream.WALSegmentInfo{
			Generation: generation, Index: f.index, Offset: f.offset, Size: f.info.Size(), CreatedAt: f.info.ModTime().UTC(),
		}
	}
	return litestream.NewWALSegmentInfoSliceIterator(infos), nil
}

// settle makes the names in dir durable if the caller is going to rely on them:
// whoever wrote the last of the files may have failed to, or died before.
func (c *FileReplicaClient) settle(ctx context.Context, dir string, files []file) error {
	if len(files) == 0 || !durable.IsListing(ctx) {
		return nil
	}
	return c.syncDir(dir)
}

// walFiles lists the segments below a generation's WAL directory.
func (c *FileReplicaClient) walFiles(ctx context.Context, dir string) ([]file, error) {
	ents, err := c.readDir(ctx, dir)
	if err != nil {
		return nil, err
	}
	files, err := selectFiles(ents, parseLegacySegmentName)
	if err != nil {
		return nil, err
	}
	for _, ent := range ents {
		index, err := litestream.ParseIndex(ent.Name())
		if err != nil || !ent.IsDir() {
			continue
		}
		ents, err := c.readDir(ctx, filepath.Join(dir, ent.Name()))
		if err != nil {
			return nil, err
		}
		segments, err := selectFiles(ents, func(name string) (file, bool) { return parseSegmentName(index, name) })
		if err != nil {
			return nil, err
		}
		files = append(files, segments...)
	}
	return files, nil
}

// sortFiles sorts by position and keeps one file of each, ours before that of
// v0.3, as the readers do.
func sortFiles(files []file) []file {
	sort.Slice(files, func(i, j int) bool {
		a, b := &files[i], &files[j]
		return cmp.Or(cmp.Compare(a.index, b.index), cmp.Compare(a.offset, b.offset), cmp.Compare(a.rank, b.rank)) < 0
	})
	return slices.CompactFunc(files, func(a, b file) bool { return a.index == b.index && a.offset == b.offset })
}

// selectFiles returns the regular files whose names parse accepts. What was
// deleted meanwhile is left out.
func selectFiles(ents []fs.DirEntry, parse func(name string) (file, bool)) ([]file, error) {
	var files []file
	for _, ent := range ents {
		f, ok := parse(ent.Name())
		if !ok || !ent.Type().IsRegular() {
			continue
		}
		var err error
		f.info, err = ent.Info()
		if errors.Is(err, fs.ErrNotExist) {
			continue
		} else if err != nil {
			return nil, err
		}
		files = append(files, f)
	}
	return files, nil
}

// readDir lists dir. One that does not exist is empty.
func (c *FileReplicaClient) readDir(ctx context.Context, dir string) ([]fs.DirEntry, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	ents, err := c.fs.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return ents, err
}
