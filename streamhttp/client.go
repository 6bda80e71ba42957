package streamhttp

import (
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"time"

	"example.com/litestream"
)

// Defaults of a Client.
const (
	DefaultSilenceTimeout = 5 * DefaultHeartbeatInterval
	DefaultMaxRecordSize  = 1 << 40
)

// Errors of a Client. Those of a stream that its context ended match the
// context's error instead.
var (
	// ErrUnauthorized reports that the server refused the client. It will not
	// change its mind by itself.
	ErrUnauthorized = errors.New("not authorized")

	// ErrNotFound reports that the handler has no database of that name. Where
	// there is no handler at the URL, it is ErrProtocol.
	ErrNotFound = errors.New("no such database")

	// ErrProtocol reports an answer that no Handler of this version gives:
	// another server or version, data that was changed on its way, or a server
	// that is up to no good.
	ErrProtocol = errors.New("protocol error")

	// ErrUnavailable reports that there is no stream now, because the server
	// cannot be reached, is starting, stopping or busy. Try again later.
	ErrUnavailable = errors.New("upstream is not available")

	// ErrStreamBroken reports that a stream broke off, or that nothing came
	// for too long. Go on from the last position in a new one. It comes with
	// io.ErrUnexpectedEOF.
	ErrStreamBroken = errors.New("stream broken")
)

// Client reads the stream of one database from a [Handler]. Construct it with
// [NewClient] and set its fields before the first call; its methods are then
// safe for concurrent use.
type Client struct {
	// HTTPClient sends the requests; nil means one with http's default
	// transport. Its Timeout is not used, and redirects are not followed.
	HTTPClient *http.Client

	// Authorize sets the headers that the server wants to see. Nil sets none:
	// see BearerToken.
	Authorize func(*http.Request) error

	// SilenceTimeout is how long to wait for the next byte before the server is
	// taken for dead: a few of its heartbeat intervals. 0 means
	// DefaultSilenceTimeout.
	SilenceTimeout time.Duration

	// MaxRecordSize is the largest record, in compressed bytes, that is
	// accepted. The largest is the snapshot. LZ4 expands up to 255 times, so
	// against a server that is up to no good only a 255th of what is left of
	// the disk is a safe value. 0 means DefaultMaxRecordSize.
	MaxRecordSize int64

	url, name string
}

var _ litestream.StreamClient = (*Client)(nil)

// NewClient returns a client of the handler at the URL, which has no query, for
// the database that the handler calls name.
func NewClient(url, name string) *Client { return &Client{url: url, name: name} }

// Stream begins a stream. The reader's calls return promptly once ctx ends.
// The errors are those of this package, or match ctx's.
func (c *Client) Stream(ctx context.Context, pos litestream.Pos) (litestream.StreamReader, error) {
	r, err := c.stream(ctx, pos)
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", quote(c.name), err)
	}
	return r, nil
}

func (c *Client) stream(ctx context.Context, pos litestream.Pos) (_ *reader, err error) {
	w := newWatch(ctx, orDefault(c.SilenceTimeout, DefaultSilenceTimeout))
	defer func() {
		if err != nil {
			w.cancel(nil)
		}
	}()
	req, err := c.request(w.ctx, pos)
	if err != nil {
		return nil, err
	}
	w.begin()
	resp, err := c.httpClient().Do(req)
	w.end()
	if err != nil {
		return nil, w.explain(ErrUnavailable, err)
	}
	defer func() {
		if err != nil {
			_ = resp.Body.Close() // the stream is given up
		}
	}()
	if resp.StatusCode != http.StatusOK {
		return nil, statusError(resp, w.message(resp.Body))
	}
	pageSize, err := checkHeader(resp)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProtocol, err)
	}
	return &reader{
		watch:    w,
		body:     resp.Body,
		pageSize: pageSize,
		maxSize:  orDefault(c.MaxRecordSize, DefaultMaxRecordSize),
		order:    order{last: pos},
	}, nil
}

func (c *Client) request(ctx context.Context, pos litestream.Pos) (*http.Request, error) {
	u, err := url.Parse(c.url)
	if err != nil {
		return nil, err
	}
	if u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" {
		return nil, fmt.Errorf("url %s: want http or https, a host, and no query", u.Redacted())
	}
	u.RawQuery = streamRequest{name: c.name, pos: pos}.query()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set(VersionHeader, protocolVersion)
	req.Header.Set("Accept", ContentType)
	req.Header.Set("Accept-Encoding", "identity") // records are compressed
	if c.Authorize != nil {
		if err := c.Authorize(req); err != nil {
			return nil, fmt.Errorf("authorize: %w", err)
		}
	}
	return req, nil
}

// httpClient returns a copy fit for streams. A redirect would take the stream,
// and the headers that authorize it, to where the host did not say.
func (c *Client) httpClient() *http.Client {
	hc := http.Client{}
	if c.HTTPClient != nil {
		hc = *c.HTTPClient
	}
	hc.Timeout = 0
	hc.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &hc
}

// statusError says what a status other than 200 means.
func statusError(resp *http.Response, message string) error {
	kind, code := ErrProtocol, resp.StatusCode
	switch {
	case code == http.StatusUnauthorized, code == http.StatusForbidden:
		kind = ErrUnauthorized
	case code == http.StatusNotFound && resp.Header.Get(VersionHeader) != protocolVersion:
		return fmt.Errorf("%w: status 404, and no stream is served at this URL: %q", ErrProtocol, message)
	case code == http.StatusNotFound:
		kind = ErrNotFound
	case code >= 500, code == http.StatusTooManyRequests:
		kind = ErrUnavailable
	}
	return fmt.Errorf("%w: status %d: %q", kind, code, message)
}

// checkHeader returns the page size from the headers of a stream.
func checkHeader(resp *http.Response) (pageSize int, err error) {
	if v := resp.Header.Get(VersionHeader); v != protocolVersion {
		return 0, fmt.Errorf("server has protocol version %.20q, want %s", v, protocolVersion)
	}
	v := resp.Header.Get("Content-Type")
	if typ, _, err := mime.ParseMediaType(v); err != nil || typ != ContentType {
		return 0, fmt.Errorf("server sends content of type %.100q, want %s", v, ContentType)
	}
	if v := resp.Header.Get("Content-Encoding"); v != "" && v != "identity" {
		return 0, fmt.Errorf("server sends content with encoding %.20q", v)
	}
	return parsePageSize(resp.Header.Get(PageSizeHeader))
}

// watch ends a context when the server is silent while it is waited for. The
// time that the follower takes to apply a record does not count.
type watch struct {
	ctx     context.Context // ends with the parent, or after silence
	cancel  context.CancelCauseFunc
	parent  context.Context
	silence time.Duration
	timer   *time.Timer
}

func newWatch(parent context.Context, silence time.Duration) *watch {
	w := &watch{parent: parent, silence: silence}
	w.ctx, w.cancel = context.WithCancelCause(parent)
	w.timer = time.AfterFunc(silence, func() {
		w.cancel(fmt.Errorf("the server was silent for %s", silence))
	})
	w.timer.Stop()
	return w
}

// begin and end enclose a wait.
func (w *watch) begin() { w.timer.Reset(w.silence) }
func (w *watch) end()   { w.timer.Stop() }

// explain returns the error of a wait that failed: the parent's if it has
// ended, else one of the given kind with the reason.
func (w *watch) explain(kind, err error) error {
	if ended := w.parent.Err(); ended != nil {
		return ended
	}
	if silent := context.Cause(w.ctx); silent != nil {
		err = silent
	}
	return fmt.Errorf("%w: %w", kind, err)
}

// message reads the beginning of an error's text.
func (w *watch) message(body io.Reader) string {
	w.begin()
	defer w.end()
	const most = 300
	b, _ := io.ReadAll(io.LimitReader(body, most)) // as much as there is
	return string(b)
}
